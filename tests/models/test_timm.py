"""timm's vision transformers: wrapped, told apart, saved, loaded. What needs timm says so when it skips."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightsmith.errors import UnknownArchitectureError, WeightsmithError
from weightsmith.models import Family, Model, create, families, load, save
from weightsmith.models import timm as room

FIVE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed: it needs torchvision")


def network(**more: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    module: nn.Module = VisionTransformer(**(FIVE | more)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


# --- without timm -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"timm:vit_tiny_patch16_224 needs timm: pip install timm torchvision"):
        load("timm:vit_tiny_patch16_224")
    with pytest.raises(WeightsmithError, match=r"needs timm: pip install"):
        create("timm:vit_tiny_patch16_224", ("a", "b"), 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timm_wrapper", "architecture": "vit_tiny"}))
    with pytest.raises(WeightsmithError, match=f"the model in {tmp_path} needs timm: pip install timm torchvision"):
        load(tmp_path)


def test_what_a_table_says_must_fit_tells_networks_of_one_type_apart(tiny_model: Callable[..., Model]) -> None:
    module = tiny_model("vit").module
    family = Family("own", "own", ("vit",), "vit.layers", (), None, "classifier", {}, {}, root="vit")
    wanted = {"layers.0": "ViTLayer", "layers.0.nothing": False, "config.hidden_size": 16}
    fitting = Family(**(family.__dict__ | {"fits": wanted}))
    assert fitting.misfit(module) is None
    other = Family(**(family.__dict__ | {"fits": {"config.hidden_size": 17}}))
    assert other.misfit(module) == "vit.config.hidden_size is 16, not 17"
    gone = Family(**(family.__dict__ | {"fits": {"layers.9": "ViTLayer"}}))
    assert gone.misfit(module) == "vit.layers.9 is None, not 'ViTLayer'"


def test_the_tables_of_timm_extend_one_another() -> None:
    plain, scaled = families()["timm_vit"], families()["timm_vit_scaled"]
    assert plain.sites == scaled.sites
    assert (plain.parts is not None, scaled.parts) == (True, None)
    assert set(scaled.fits) < set(plain.fits)


# --- with timm --------------------------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(
    ("more", "family"),
    [
        ({}, "timm_vit"),
        ({"init_values": 0.1}, "timm_vit_scaled"),
        ({"qk_norm": True}, "timm_vit_scaled"),
        ({"pre_norm": True}, "timm_vit"),
    ],
)
def test_a_network_in_memory_is_wrapped_and_stays_itself(more: dict[str, Any], family: str) -> None:
    module = network(**more)
    model = load(module)
    assert (model.family.name, model.n_layers, model.n_heads(0), model.n_tokens) == (family, 2, 2, 5)
    assert model.class_names == tuple(f"class {i}" for i in range(5))
    assert model.module.timm_model is module
    pixels = torch.randn(3, 3, 8, 8)
    assert torch.equal(model.logits(pixels), module(pixels))


@needs_timm
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"global_pool": "avg"}, r"timm_model\.global_pool is 'avg', not 'token'"),
        ({"reg_tokens": 4}, r"timm_model\.num_prefix_tokens is 5, not 1"),
    ],
)
def test_what_no_table_fits_is_told_by_what_does_not_fit(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=told):
        load(network(**more))


@needs_timm
def test_a_network_without_a_classifier_is_refused() -> None:
    with pytest.raises(WeightsmithError, match="no classifier: make it with num_classes"):
        load(network(num_classes=0))


@needs_timm
@pytest.mark.parametrize("more", [{}, {"init_values": 0.1, "no_embed_class": True}, {"qkv_bias": False, "depth": 3}])
def test_a_saved_folder_gives_the_same_bits_in_ours_and_in_plain_transformers(
    more: dict[str, Any], tmp_path: Path, random_pixels: Callable[..., Tensor]
) -> None:
    from transformers import AutoModelForImageClassification

    model = load(network(**more))
    save(model, tmp_path / "m")
    inputs = model.preprocess(random_pixels(3))
    again = load(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again.logits(inputs), model.logits(inputs))
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
        assert torch.equal(plain(inputs).logits, model.logits(inputs))
    assert (again.family, again.fingerprint()) == (model.family, model.fingerprint())


@needs_timm
def test_a_network_made_by_name_is_saved_by_name(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    model = load(module.eval())
    assert (model.preprocess.size, model.preprocess.mean) == (224, (0.5, 0.5, 0.5))
    assert model.module.config.model_args is None
    save(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["architecture"] == "vit_tiny_patch16_224"
    assert load(tmp_path / "m").fingerprint() == model.fingerprint()


@needs_timm
def test_a_folder_of_timms_own_is_read(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    published = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 224, 224], "num_classes": 3}
    entries = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "label_names": ["a", "b", "c"]}
    (tmp_path / "config.json").write_text(json.dumps(entries | {"pretrained_cfg": published}))
    model = load(tmp_path)
    assert model.class_names == ("a", "b", "c")
    assert (model.preprocess.mean, model.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.module.timm_model.head.weight, weights["head.weight"])


@needs_timm
def test_a_network_that_timm_would_not_build_again_is_not_saved(tmp_path: Path) -> None:
    module = network()
    module.blocks[1].mlp.act = nn.Tanh()
    model = load(module)
    with pytest.raises(WeightsmithError, match=r"cannot be saved as a folder.*Tanh"):
        save(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@needs_timm
def test_names_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    with pytest.raises(
        WeightsmithError, match=r"timm knows no model vit_tiny_patch16_22: did you mean vit_tiny_patch16_224"
    ):
        load("timm:vit_tiny_patch16_22")
    with pytest.raises(
        WeightsmithError, match=r"weights of timm:vit_tiny_patch16_224 could not be fetched .*hf download"
    ):
        load("timm:vit_tiny_patch16_224")
    made, build = [], timm.create_model

    def without_hub(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        made.append((name, pretrained))
        return build(name, pretrained=False, **more)

    monkeypatch.setattr(timm, "create_model", without_hub)
    model = load("timm:vit_tiny_patch16_224")
    assert made[0] == ("vit_tiny_patch16_224", True)
    assert (model.n_layers, model.n_classes) == (12, 1000)
    fresh = create("timm:vit_tiny_patch16_224", ("yes", "no"), 0)
    assert (fresh.class_names, fresh.module.timm_model.head.out_features) == (("yes", "no"), 2)


def test_is_timm_asks_for_no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        room.sys.modules, "timm.models.vision_transformer", SimpleNamespace(VisionTransformer=nn.Linear)
    )
    assert room.is_timm(nn.Linear(1, 1))
    assert not room.is_timm(nn.Bilinear(1, 1, 1))
    monkeypatch.delitem(room.sys.modules, "timm.models.vision_transformer")
    assert not room.is_timm(nn.Linear(1, 1))
