"""Family tables: of one's own, extending a shipped one, wrong ones; and which family a network of transformers is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightsmith.errors import UnknownArchitectureError, WeightsmithError
from weightsmith.models import Family, Model, Split, families, load, record
from weightsmith.site import Site

OWN = """
title = "my network"
model_types = ["mine"]
blocks = "body"
[tail]
modules = []
classifier = "head"
[sites]
"resid.in" = { module = "", side = "in" }
"resid.out" = { module = "", side = "out" }
"classifier.key" = { module = "/head", side = "in" }
"classifier.value" = { module = "/head", side = "out" }
[linear]
"classifier.value" = { key = "classifier.key", module = "/head" }
"""


class Mine(nn.Module):
    """A network that weightsmith has never seen."""

    def __init__(self) -> None:
        super().__init__()
        from types import SimpleNamespace

        self.config = SimpleNamespace(
            model_type="mine", image_size=4, num_channels=1, num_labels=2, id2label={0: "no", 1: "yes"}
        )
        self.body = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 2)

    def forward(self, pixel_values: Tensor) -> Any:
        from types import SimpleNamespace

        hidden = pixel_values.flatten(1)
        for block in self.body:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.head(hidden))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_table_is_all_that_a_new_architecture_needs(tmp_path: Path, random_pixels: Callable[..., Tensor]) -> None:
    family = Family.from_toml(write(tmp_path / "mine.toml", OWN))
    assert family.name == "mine"
    with pytest.raises(UnknownArchitectureError):
        load(Mine())
    model = load(Mine(), family=family)
    assert (model.class_names, model.n_layers) == (("no", "yes"), 2)
    inputs = model.preprocess(random_pixels(2, side=4, channels=1))
    run = record(model, inputs, [Site("resid.in", 1)])
    assert torch.equal(model.run_from(1, run[Site("resid.in", 1)]), run.logits)


def test_a_table_may_extend_a_shipped_one(tmp_path: Path, tiny_model: Callable[..., Model]) -> None:
    text = """
    extends = "vit"
    title = "mine"
    model_types = ["deit"]
    root = "deit"
    [tokens]
    special = 2
    [sites]
    "mlp.key" = { module = "mlp.fc1", side = "in" }
    """
    family, vit = Family.from_toml(write(tmp_path / "own.toml", text)), families()["vit"]
    assert (family.blocks, family.tail, family.special, family.cls) == ("deit.layers", ("deit.layernorm",), 2, 0)
    assert set(family.sites) == set(vit.sites)
    assert family.sites["mlp.key"].module == "mlp.fc1"
    assert family.sites["mlp.value"] == vit.sites["mlp.value"]
    assert family.linear == vit.linear
    module = tiny_model("deit").module
    assert load(module, family=family).family is family


def test_extending_changes_no_shipped_table(tmp_path: Path) -> None:
    text = 'extends = "vit"\n[sites]\n"mlp.key" = { module = "elsewhere", side = "in" }\n'
    assert Family.from_toml(write(tmp_path / "own.toml", text)).sites["mlp.key"].module == "elsewhere"
    assert Family.from_toml(write(tmp_path / "new.toml", 'extends = "vit"')).sites == families()["vit"].sites


def test_a_table_may_extend_one_that_extends(tmp_path: Path) -> None:
    family = Family.from_toml(write(tmp_path / "own.toml", 'extends = "deit"\ntitle = "mine"\n'))
    assert (family.sites, family.special) == (families()["deit"].sites, 2)


def test_extending_an_unknown_family_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="vti"):
        Family.from_toml(write(tmp_path / "own.toml", 'extends = "vti"'))


def test_an_unknown_pool_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="mean"):
        Family.from_toml(write(tmp_path / "own.toml", OWN.replace("modules = []", 'modules = []\npool = "mean"')))


def test_an_unknown_side_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="input"):
        Family.from_toml(write(tmp_path / "own.toml", OWN.replace('side = "in"', 'side = "input"')))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title = ", "own.toml cannot be read"),
        (OWN.replace('title = "my network"', ""), "'title'"),
        (OWN.replace('blocks = "body"', ""), "'blocks'"),
        (OWN.replace('classifier = "head"', ""), "'classifier'"),
        (OWN.replace("[linear]", "[liner]"), "'linear'"),
        (OWN.replace('"resid.in"', '"resid.inn"'), "unknown site 'resid.inn'"),
        (OWN.replace('side = "in" }', 'sides = "in" }'), "sides"),
        (OWN.replace('key = "classifier.key", ', ""), "key"),
        (OWN.replace('"classifier.value" = { key', '"head.value" = { key'), "unknown site 'head.value'"),
    ],
)
def test_a_table_that_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    assert text != OWN
    with pytest.raises(WeightsmithError) as error:
        Family.from_toml(write(tmp_path / "own.toml", text))
    assert told in str(error.value)
    assert "own" in str(error.value)


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"nowhere\.toml cannot be read"):
        Family.from_toml(tmp_path / "nowhere.toml")


def test_a_table_that_does_not_fit_the_network_is_told(tmp_path: Path, tiny_model: Callable[..., Model]) -> None:
    """A ViT read with the table of another layout: no raw AttributeError out of torch."""
    family = Family.from_toml(write(tmp_path / "mine.toml", OWN))
    with pytest.raises(WeightsmithError, match="body"):
        _ = load(tiny_model("vit").module, family=family).n_layers


# --- what transformers says in the config -----------------------------------------------------------------------------


def test_a_table_may_leave_out_the_parts_of_the_one_it_extends(tmp_path: Path) -> None:
    llama = families()["llama"].parts
    assert llama is not None
    assert Family.from_toml(write(tmp_path / "own.toml", 'extends = "llama"\nparts = false\n')).parts is None
    text = 'extends = "qwen3"\n[parts]\nnorm1 = "a"\nnorm2 = "b"\nmlp = "c"\nqkv = ["d"]\noutput = "e"\n'
    back = Family.from_toml(write(tmp_path / "back.toml", text)).parts
    assert back is not None
    assert (back.norm1, back.qkv) == ("a", ("d",))


def test_rotary_positions_from_a_module_that_is_not_there_are_told(
    tmp_path: Path, tiny_model: Callable[..., Model]
) -> None:
    text = 'extends = "llama"\n[attention]\nrotary = "model.turn"\n'
    with pytest.raises(WeightsmithError, match=r"'model\.turn'"):
        load(tiny_model("llama").module, family=Family.from_toml(write(tmp_path / "own.toml", text)))


@pytest.mark.parametrize(
    ("family_name", "windows"),
    [("llama", [None] * 3), ("gptj", [None] * 3), ("mistral", [6] * 3), ("qwen2", [None, 6, 6]), ("qwen3", [None] * 3)],
)
def test_the_window_of_each_block_is_that_of_the_config(model: Model, windows: list[int | None]) -> None:
    assert [model.window(layer) for layer in range(model.n_layers)] == windows


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 16])
def test_a_window_of_any_width_is_that_of_the_full_pass(window: int | None, implementation: str) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=29, max_position_embeddings=16, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5, sliding_window=window,
    )  # fmt: skip
    model = load(MistralForCausalLM._from_config(config, attn_implementation=implementation))
    with torch.no_grad():
        for count in (1, 3, 7, 12):
            ids = torch.randint(0, 29, (2, count))
            entering, wanted = model.embed(ids), model.logits(ids)
            assert torch.equal(model.run_from(0, entering), wanted)
            torch.testing.assert_close(Split.of(model, entering).run(entering, ()).logits, wanted, rtol=1e-5, atol=1e-5)
