"""Blocks of different widths, saved and loaded: here, and where nobody knows of weightsmith."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, load, save
from weightsmith.models.narrow_vit import NarrowViTConfig, NarrowViTForImageClassification

ENTRIES: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 24, "num_labels": 3, "attention_heads": [3, 0, 2, 1], "mlp_widths": [9, 24, 0, 5], "head_dim": 4,
}  # fmt: skip

ELSEWHERE = """
import sys, torch
from transformers import AutoModelForImageClassification
folder, inputs, logits, weights = sys.argv[1:]
load = lambda: AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
model = load()
with torch.no_grad():
    torch.save(model(torch.load(inputs)).logits, logits)
assert "weightsmith" not in sys.modules
model.save_pretrained(folder + "-again")
again = AutoModelForImageClassification.from_pretrained(folder + "-again", trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(again(torch.load(inputs)).logits, torch.load(logits))
from safetensors.torch import load_file, save_file
whole = load_file(weights)
name = sorted(name for name in whole if name.endswith("fc1.weight"))[0]
for damaged in (
    {key: value for key, value in whole.items() if key != name},
    whole | {"vit.layers.9.mlp.fc1.weight": whole[name].clone()},
    whole | {name: whole[name][:2].clone()},
):
    save_file(damaged, weights, metadata={"format": "pt"})
    for extra in ({}, {"ignore_mismatched_sizes": True}):
        try:
            AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, **extra)
        except (ValueError, RuntimeError) as error:
            print(type(error).__name__)
        else:
            raise SystemExit("damaged weights were loaded")
"""
"""What a user without weightsmith does with the folder, and with a damaged one."""


@pytest.fixture(params=[False, True], ids=["every-row", "cls-row"])
def model(request: pytest.FixtureRequest) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load(NarrowViTForImageClassification(NarrowViTConfig(**ENTRIES, cls_only=request.param)))


@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(
    model: Model, random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    save(model, tmp_path / "model")
    back, inputs = load(tmp_path / "model"), random_inputs(model, 3)
    assert type(back.module) is NarrowViTForImageClassification
    assert back.fingerprint() == model.fingerprint()
    assert torch.equal(back.logits(inputs), model.logits(inputs))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: config[name] for name in ENTRIES if name != "num_labels"} == {
        name: entry for name, entry in ENTRIES.items() if name != "num_labels"
    }
    assert config["cls_only"] == model.module.config.cls_only
    save(back, tmp_path / "again")
    assert (tmp_path / "again" / "narrow_vit.py").read_bytes() == (tmp_path / "model" / "narrow_vit.py").read_bytes()


def test_plain_transformers_loads_it_without_weightsmith_and_refuses_damaged_weights(
    random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = load(NarrowViTForImageClassification(NarrowViTConfig(**ENTRIES, cls_only=True)))
    folder, inputs = tmp_path / "model", random_inputs(model, 3)
    save(model, folder)
    torch.save(inputs, tmp_path / "inputs.pt")
    arguments = [folder, tmp_path / "inputs.pt", tmp_path / "logits.pt", folder / "model.safetensors"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 6
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model.logits(inputs))


def test_the_file_in_the_folder_needs_transformers_and_torch_only(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path / "model")
    lines = (tmp_path / "model" / "narrow_vit.py").read_text(encoding="utf-8").splitlines()
    imports = [line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))]
    assert set(imports) == {"typing", "torch", "transformers"}


def test_weights_that_do_not_fit_are_refused_here_too(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(model, folder)
    path, config = folder / "model.safetensors", folder / "config.json"
    whole, entries = load_file(path), json.loads(config.read_text())
    name = "vit.layers.1.mlp.fc2.weight"
    for damaged in (
        {key: value for key, value in whole.items() if key != name},
        whole | {"vit.layers.1.attention.o_proj.bias": whole["vit.layers.0.attention.o_proj.bias"].clone()},
        whole | {name: whole[name][:, :3].clone()},
    ):
        save_file(damaged, path, metadata={"format": "pt"})
        with pytest.raises(WeightsmithError, match=str(folder)):
            load(folder)
    save_file(whole, path, metadata={"format": "pt"})
    load(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsmithError, match=str(folder)):
        load(folder)
    save_file(whole, path, metadata={"format": "pt"})
    for wrong in ({"attention_heads": [3, 0, 2]}, {"mlp_widths": [9, 24, 0, -5]}, {"mlp_widths": [9, 0, 0, 5]}):
        config.write_text(json.dumps(entries | wrong))
        with pytest.raises(WeightsmithError, match=f"{next(iter(wrong))}|neither attention nor MLP"):
            load(folder)


@torch.no_grad()
def test_a_uniform_one_is_transformers_vit_bit_for_bit(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor]
) -> None:
    vit = tiny_model("vit")
    entries = {name: entry for name, entry in vit.module.config.to_dict().items() if name != "model_type"}
    narrow = NarrowViTForImageClassification(NarrowViTConfig(**entries)).eval()
    assert narrow.config.attention_heads == [2, 2, 2]
    assert narrow.config.mlp_widths == [24, 24, 24]
    narrow.load_state_dict(vit.module.state_dict())
    inputs = random_inputs(vit, 3)
    for attention in ("sdpa", "eager"):
        for module in (narrow, vit.module):
            module.set_attn_implementation(attention)
        one, other = (
            m(inputs, output_hidden_states=True, output_attentions=attention == "eager") for m in (narrow, vit.module)
        )
        assert torch.equal(one.logits, other.logits)
        assert len(one.hidden_states) == len(other.hidden_states) == 4
        assert all(torch.equal(a, b) for a, b in zip(one.hidden_states, other.hidden_states, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.attentions, other.attentions, strict=True))


def test_it_learns_like_any_other(model: Model, random_inputs: Callable[..., Tensor]) -> None:
    module: Any = model.module.train()
    module.gradient_checkpointing_enable()
    module(random_inputs(model, 2), labels=torch.tensor([0, 2])).loss.backward()
    without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert not without
