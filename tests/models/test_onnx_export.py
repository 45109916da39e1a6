from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, onnx_export
from weightsmith.models.onnx_export import save_onnx

NEEDED = "needs onnx, onnxscript and onnxruntime: pip install 'weightsmith[onnx]'"


@torch.no_grad()
def test_the_file_gives_the_models_logits_for_any_batch(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    """One that computes CLS alone is among the tests of `weightsmith compress`."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=NEEDED)
    runtime = pytest.importorskip("onnxruntime", reason=NEEDED)
    model = tiny_model("narrow_vit")
    path = tmp_path / "model.onnx"
    save_onnx(model, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["pixel_values"]
    for batch in (1, 3):
        inputs = random_inputs(model, batch)
        wanted = model.logits(inputs)
        (found,) = session.run(["logits"], {"pixel_values": inputs.numpy()})
        assert found.shape == (batch, 4)
        assert float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_missing_package_is_told(
    tiny_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(WeightsmithError, match=r"onnxscript is needed .*pip install 'weightsmith\[onnx\]'"):
        save_onnx(tiny_model("vit"), tmp_path / "model.onnx")


@torch.no_grad()
def test_a_language_model_keeps_batch_and_sequence_free(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=NEEDED)
    runtime = pytest.importorskip("onnxruntime", reason=NEEDED)
    model, path = tiny_model("gpt2"), tmp_path / "model.onnx"
    save_onnx(model, path, {"said": "by us"})
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"said": "by us"}
    for shape in ((1, 1), (3, 7), (2, model.n_tokens)):
        ids = torch.randint(1, model.n_classes, shape)
        (found,) = session.run(["logits"], {"input_ids": ids.numpy()})
        assert found.shape == (*shape, model.n_classes)
        torch.testing.assert_close(torch.from_numpy(found), model.token_logits(ids), rtol=1e-4, atol=1e-4)
