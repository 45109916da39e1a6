"""Adapters of ours and of plain PEFT's own making, read back as deltas."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.adapters import transposed_weights
from weightsmith.delta import Change, Delta, Dense, LowRank, weights_hash
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model

WEIGHTS = "adapter_model.safetensors"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def delta_of(model: Model) -> Delta:
    """Low-rank and dense changes of several ranks, one of a square weight, and a bias."""
    names = [model.linear(kind, layer)[0] for kind, layer in (("mlp.value", 0), ("attn.value", 1), ("mlp.value", 2))]
    changes: dict[str, Change] = {}
    for place, name in enumerate(names):
        rows, columns = model.module.get_parameter(name).shape
        low = LowRank(0.3 * randn(rows, place + 1, seed=place), randn(place + 1, columns, seed=place + 50))
        changes[name] = Dense(0.1 * randn(rows, columns, seed=place)) if place == 2 else low
    bias = names[1].removesuffix("weight") + "bias"
    changes[bias] = Dense(0.3 * randn(len(model.module.get_parameter(bias)), seed=99))
    return Delta(changes, weights_hash(model), {"method": "random", "rows": [1.5, "ü"]})


@torch.no_grad()
def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    found: Tensor = module(inputs).logits
    return found


@pytest.mark.parametrize("family", ["vit", "gpt2"])
@pytest.mark.parametrize("alpha", [None, 0.3, 64])
def test_a_delta_is_the_same_after_a_round_trip(
    tiny_model: Callable[..., Model], tmp_path: Path, family: str, alpha: float | None
) -> None:
    model = tiny_model(family)
    delta = delta_of(model)
    delta.to_lora(tmp_path / "adapter", model, alpha=alpha)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == (16 if alpha is None else alpha)
    back = Delta.of_lora(tmp_path / "adapter")
    assert (back.base, back.info, set(back.changes)) == (delta.base, delta.info, set(delta.changes))
    for name, change in delta.changes.items():
        torch.testing.assert_close(back.changes[name].dense(), change.dense(), rtol=1e-6, atol=1e-6)
    back.to_lora(tmp_path / "again", model)
    for name, change in Delta.of_lora(tmp_path / "again").changes.items():
        torch.testing.assert_close(change.dense(), delta.changes[name].dense(), rtol=1e-6, atol=1e-6)


def test_an_adapter_for_another_base_is_refused(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    model, other = tiny_model("vit"), tiny_model("vit", seed=1)
    delta_of(model).to_lora(tmp_path / "adapter", model)
    back = Delta.of_lora(tmp_path / "adapter")
    with back.on(model):
        pass
    with pytest.raises(WrongWeightsError, match="made for other weights"), back.on(other):
        pass


def test_the_file_says_what_made_it_beside_what_peft_writes(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_model("vit")
    delta = delta_of(model)
    delta.to_lora(tmp_path / "adapter", model)
    with safe_open(tmp_path / "adapter" / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["weightsmith"])["base"] == delta.base == weights_hash(model)


def test_an_adapter_turned_the_wrong_way_round_is_another_change(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    """A square weight fits either way round, so nothing but the predictions tells."""
    model = tiny_model("gpt2")
    name = model.linear("attn.value", 1)[0]
    delta, inputs = Delta({name: LowRank(randn(16, 2), randn(2, 16, seed=1))}), random_inputs(model, 2)
    delta.to_lora(tmp_path / "adapter", model)
    with delta.on(model):
        edited = logits(model.module, inputs)
    for transposed, same in ((None, True), ({name}, True), (set(), False)):
        with Delta.of_lora(tmp_path / "adapter", transposed).on(model):
            assert torch.allclose(logits(model.module, inputs), edited, atol=1e-5) is same


def test_a_network_may_hold_weights_both_ways_round(tmp_path: Path) -> None:
    from peft import PeftModel

    module = nn.Sequential(Conv1D(5, 5), nn.Linear(5, 5), Conv1D(4, 5)).eval()
    stored = transposed_weights(module)
    assert stored == {"0.weight", "2.weight"}
    delta = Delta(
        {name: Dense(randn(*module.get_parameter(name).shape)) for name in ("0.weight", "1.weight", "2.weight")}
    )
    delta.to_lora(tmp_path / "adapter", module, alpha=3)
    for name, change in Delta.of_lora(tmp_path / "adapter").changes.items():
        torch.testing.assert_close(change.dense(), delta.changes[name].dense(), rtol=1e-5, atol=1e-6)
    inputs = randn(3, 5).float()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        wearing = PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / "adapter")
    with torch.no_grad(), delta.on(module):
        torch.testing.assert_close(wearing(inputs), module(inputs), rtol=1e-5, atol=1e-5)


# --- what PEFT wrote -----------------------------------------------------------------------------------------------


def trained_in_peft(model: Model, folder: Path, **config: Any) -> nn.Module:
    """As if trained: B, which begins at zero, is random, and its bias too."""
    from peft import LoraConfig, get_peft_model

    wearing = get_peft_model(copy.deepcopy(model.module), LoraConfig(**config)).eval()
    with torch.no_grad():
        for place, (name, parameter) in enumerate(wearing.named_parameters()):
            if "lora_B" in name or "lora_magnitude" in name:
                parameter.copy_(0.3 * randn(*parameter.shape, seed=place))
    wearing.save_pretrained(folder)
    found: nn.Module = wearing
    return found


PATTERNS = {
    "rank_pattern": {"0.attn.c_proj": 1, r".*2\.mlp\.c_proj": 5},
    "alpha_pattern": {"attn.c_proj": 2, "c_proj": 9},
}
"""In the order of the alphabet, as PEFT writes them: of two that fit, it reads back the first."""


@pytest.mark.filterwarnings("ignore:Adapter 'default':peft.utils.warning.PeftWarning")  # it takes a bias for a broken B
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("vit", {"target_modules": ["fc2", "classifier"], "r": 3, "lora_alpha": 5}),
        ("vit", {"target_modules": ["fc1", "o_proj"], "r": 4, "use_rslora": True, "lora_bias": True}),
        ("gpt2", {"target_modules": ["c_proj"], "r": 3, "lora_alpha": 7, "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_proj", "c_attn"], "r": 3, "fan_in_fan_out": True, **PATTERNS}),
    ],
)
def test_an_adapter_that_peft_wrote_is_the_same_change(
    tiny_model: Callable[..., Model],
    random_inputs: Callable[..., Tensor],
    tmp_path: Path,
    family: str,
    config: dict[str, Any],
) -> None:
    model = tiny_model(family)
    inputs = random_inputs(model, 4)
    wearing = trained_in_peft(model, tmp_path / "adapter", **config)
    delta = Delta.of_lora(tmp_path / "adapter")
    assert delta.base == ""  # PEFT does not say
    wanted = logits(wearing, inputs)
    assert (wanted - logits(model.module, inputs)).abs().max() > 0.05
    with delta.on(model):
        torch.testing.assert_close(logits(model.module, inputs), wanted, rtol=0, atol=1e-5)
    assert any(name.endswith("bias") for name in delta.changes) == config.get("lora_bias", False)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, r"adapter_config\.json.*DoRA.*merge_and_unload"),
        ({"init_lora_weights": "pissa"}, r"initialisation \(pissa\) that changed the base.*merge_and_unload"),
        ({"modules_to_save": ["classifier"]}, r"model\.safetensors holds base_model\.model\.classifier.*merge_and_un"),
        ({"target_modules": ["projection"]}, r"holds base_model\.model\.vit.*projection.*no factor of a linear"),
    ],
)
def test_an_adapter_that_is_more_than_two_factors_is_refused(
    tiny_model: Callable[..., Model], tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    trained_in_peft(tiny_model("vit"), tmp_path / "adapter", **{"target_modules": ["fc2"], "r": 2} | config)
    with pytest.raises(WeightsmithError, match=told):
        Delta.of_lora(tmp_path / "adapter")


def small() -> nn.Module:
    """One layer, `a.fc`."""
    return nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(4, 3)})})


# --- bad files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A good adapter of one layer, rank 2."""
    Delta({"a.fc.weight": LowRank(randn(3, 2), randn(2, 4))}).to_lora(tmp_path / "adapter", small())
    return tmp_path / "adapter"


def refused(folder: Path, told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        Delta.of_lora(folder)


def test_a_missing_or_damaged_file_is_named(adapter: Path) -> None:
    refused(adapter / "nowhere", r"nowhere/adapter_config\.json does not exist: give the folder")
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:-1])
    refused(adapter, r"adapter_model\.safetensors is damaged")
    (adapter / WEIGHTS).unlink()
    refused(adapter, r"adapter_model\.safetensors does not exist")
    for text in ("{", "[]", '{"r": 2}'):
        (adapter / "adapter_config.json").write_text(text)
        refused(adapter, r"adapter_config\.json is damaged")


def test_a_pickle_is_not_opened(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"anything")
    refused(adapter, r"adapter_model\.bin is a pickle.*save it again")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"peft_type": "IA3"}, r"describes a IA3 adapter"),
        ({"r": 3, "rank_pattern": {}}, r"no factors of rank 3 for a\.fc"),
        ({"r": 0, "rank_pattern": {}}, r"no rank and alpha for a\.fc"),
        ({"r": None, "rank_pattern": {}}, r"no rank and alpha for a\.fc"),
        ({"alpha_pattern": {"(": 1}}, r"no rank and alpha for a\.fc"),
        ({"alpha_pattern": [1]}, r"no rank and alpha for a\.fc"),
    ],
)
def test_a_bad_configuration_is_named(adapter: Path, entries: dict[str, Any], told: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    refused(adapter, told)


def test_factors_that_do_not_belong_together_are_named(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    down, up = (f"base_model.model.a.fc.lora_{part}.weight" for part in "AB")
    for changed, told in (
        ({down: tensors[down]}, r"no factors of rank 2 for a\.fc"),
        ({down: tensors[down], up: tensors[up][:, :1].clone()}, r"no factors of rank 2 for a\.fc"),
        ({down: tensors[down], up: tensors[up] * float("nan")}, "NaN"),
        ({}, "holds no LoRA factors"),
    ):
        save_file(changed, adapter / WEIGHTS)
        refused(adapter, told)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_alpha_writes_nothing(tmp_path: Path, alpha: float) -> None:
    delta = Delta({"a.fc.weight": LowRank(randn(3, 2), randn(2, 4))})
    with pytest.raises(WeightsmithError, match="--lora-alpha"):
        delta.to_lora(tmp_path / "adapter", small(), alpha=alpha)
    assert not list(tmp_path.iterdir())


def test_the_same_adapter_is_the_same_bytes(tmp_path: Path) -> None:
    """safetensors writes metadata in an order that changes from file to file, and PEFT layers from process to process."""
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(8)))
    delta = Delta({f"{layer}.weight": LowRank(randn(3, 1), randn(1, 3)) for layer in range(8)}, info={"a": 1})
    contents = set()
    for number in range(12):
        delta.to_lora(tmp_path / str(number), module)
        contents.add((tmp_path / str(number) / WEIGHTS).read_bytes())
    assert len(contents) == 1
    written = json.loads((tmp_path / "0" / "adapter_config.json").read_text())
    assert written["target_modules"] == [str(layer) for layer in range(8)]
    assert Delta.of_lora(tmp_path / "0").info == {"a": 1}
