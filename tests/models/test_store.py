from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import UnknownArchitectureError, WeightsmithError
from weightsmith.models import Model, create, families, load, presets, save
from weightsmith.train import TrainOptions

CLASSES = ("a", "b", "c")


@pytest.fixture
def folder(tiny_model: Callable[..., Model], tmp_path: Path) -> Path:
    """A saved tiny ViT of 4 classes."""
    save(tiny_model("vit"), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.fixture(params=sorted(name for name, family in families().items() if family.reads == "images"))
def family_name(request: pytest.FixtureRequest) -> str:
    """Image classifiers; language models are saved and loaded in test_text.py."""
    name: str = request.param
    return name


def test_save_and_load_are_inverse(model: Model, random_pixels: Callable[..., Tensor], tmp_path: Path) -> None:
    save(model, tmp_path / "model", card="# Mine\n")
    back = load(tmp_path / "model")
    assert weights_hash(back) == weights_hash(model)
    assert (back.class_names, back.preprocess) == (model.class_names, model.preprocess)
    assert (back.family, back.n_layers) == (model.family, model.n_layers)
    assert not back.module.training
    inputs = model.preprocess(random_pixels(3, side=11))
    with torch.no_grad():
        assert torch.equal(back.logits(inputs), model.logits(inputs))
    assert (tmp_path / "model" / "README.md").read_text() == "# Mine\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_plain_transformers_loads_what_was_saved(
    model: Model, random_pixels: Callable[..., Tensor], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification

    save(model, tmp_path / "model")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    inputs = model.preprocess(random_pixels(3))
    with torch.no_grad():
        assert torch.equal(plain(pixel_values=inputs).logits, model.logits(inputs))


def test_a_model_of_plain_transformers_is_loaded(tmp_path: Path, random_pixels: Callable[..., Tensor]) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    module = ViTForImageClassification(config).eval()
    module.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model")
    assert model.class_names == ("cat", "dog")
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    inputs = model.preprocess(random_pixels(2))
    with torch.no_grad():
        assert torch.equal(model.logits(inputs), module(inputs).logits)


def test_what_is_in_memory_already_is_taken_as_it_is(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("deit")
    assert load(model) is model
    again = load(model.module)
    assert again.module is model.module
    assert again.name == "DeiTForImageClassification"


def test_a_run_folder_gives_its_model(folder: Path) -> None:
    assert weights_hash(load(folder.parent)) == weights_hash(load(str(folder)))


def test_saving_over_a_model_leaves_nothing_of_it(folder: Path, tiny_model: Callable[..., Model]) -> None:
    (folder / "left-over.txt").write_text("old")
    save(tiny_model("mlp"), folder)
    assert not (folder / "left-over.txt").exists()
    assert load(folder).family.name == "mlp"


def test_loading_is_quiet_and_leaves_transformers_as_loud_as_before(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as chatter

    before = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert (chatter.get_verbosity(), chatter.is_progress_bar_enabled()) == before


# --- what cannot be loaded -----------------------------------------------------------------------------------------


def test_an_unknown_architecture_lists_the_families(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2)
    with pytest.raises(UnknownArchitectureError) as told:
        load(ResNetForImageClassification(config))
    text = str(told.value)
    assert "ResNetForImageClassification" in text
    assert all(name in text for name in families())
    assert "Family.from_toml" in text
    with pytest.raises(UnknownArchitectureError, match="Linear"):
        load(nn.Linear(2, 2))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsmithError, match=r"empty holds no model: expected config\.json"):
        load(tmp_path / "empty")


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(WeightsmithError, match="resnet does not exist"):
        load("resnet")


def test_a_config_without_weights_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsmithError) as told:
        load(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_damaged_weights_are_told(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(WeightsmithError) as told:
        load(folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_damaged_config_is_told(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit",')
    with pytest.raises(WeightsmithError) as told:
        load(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"hidden_size": 32},
        {"intermediate_size": 25},
        {"patch_size": 2},
        {"image_size": 16},
        {"num_channels": 1},
        {"num_hidden_layers": 4},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
        {"model_type": "deit", "architectures": ["DeiTForImageClassification"]},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_weights_of_other_sizes_than_the_config_are_never_filled_at_random(
    folder: Path, entries: dict[str, Any]
) -> None:
    edit_config(folder, **entries)
    with pytest.raises(WeightsmithError) as told:
        load(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize("name", ["classifier.bias", "vit.embeddings.cls_token", "vit.layernorm.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsmithError, match="lack 1 tensors") as told:
        load(folder)
    assert name in str(told.value)


def test_a_config_of_fewer_blocks_than_the_weights_is_told(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(WeightsmithError):
        load(folder)


def test_a_hub_name_without_internet_is_told_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(WeightsmithError, match=r"--model nobody/nothing could not be fetched from the hub") as told:
        load("nobody/nothing")
    assert time.monotonic() - started < 60, "the hub is tried for minutes"
    assert "hf download nobody/nothing" in str(told.value)
    assert all(name in str(told.value) for name in presets())
    assert "\n" not in str(told.value)


# --- to be trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_makes_a_classifier(name: str) -> None:
    model = create(name, CLASSES, seed=0)
    entries = presets()[name]
    assert model.class_names == CLASSES
    assert model.n_layers == entries["num_hidden_layers"]
    assert (model.preprocess.size, model.preprocess.channels) == (entries["image_size"], 3)
    pixels = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    with torch.no_grad():
        assert model.logits(model.preprocess(pixels)).shape == (1, 3)


def test_the_preset_of_tiny_imagenet_is_the_published_baseline() -> None:
    model = create("tiny-imagenet", CLASSES, seed=0)
    config = model.module.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (576, 6, 6)
    assert (config.intermediate_size, config.patch_size, config.image_size) == (1536, 8, 64)
    assert model.module.vit.embeddings.position_embeddings.shape == (1, 65, 576)
    recipe = TrainOptions(**presets()["tiny-imagenet"]["training"])
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (50, 64, 1e-4, 0.01)
    assert (recipe.label_smoothing, recipe.augment) == (0.1, "natural-colour")


def test_the_seed_decides_the_weights_and_nothing_outside() -> None:
    state = torch.random.get_rng_state()
    same, again, other = (weights_hash(create("digits", CLASSES, seed)) for seed in (1, 1, 2))
    assert same == again
    assert same != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_config_file_describes_a_network(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    entries = {"model_type": "weightsmith_mlp", "image_size": 5, "hidden_sizes": [7, 6]}
    path.write_text(json.dumps(entries))
    model = create(str(path), CLASSES, seed=0, channels=1)
    assert (model.family.name, model.n_layers, model.preprocess.channels) == ("mlp", 2, 1)
    assert model.module.get_parameter("blocks.0.linear.weight").shape == (7, 25)
    path.write_text(json.dumps(entries | {"num_channels": 3}))
    assert create(str(path), CLASSES, seed=0, channels=1).preprocess.channels == 3  # the file has the last word


@pytest.mark.parametrize(
    "entries",
    [
        {"image_size": 10, "patch_size": 4},
        {"hidden_size": 10, "num_attention_heads": 3},
        {"model_type": "no-such-network"},
        {"hidden_size": "wide"},
        {"num_hidden_layers": -1, "hidden_size": -8},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_built_is_told(tmp_path: Path, entries: dict[str, Any]) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(WeightsmithError, match=r"net\.json describes no network"):
        create(str(path), CLASSES, seed=0)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "no JSON file"), ("[1]", "one JSON object"), ("\xff", "no JSON file")]
)
def test_a_config_that_cannot_be_read_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsmithError, match=told):
        create(str(path), CLASSES, seed=0)


def test_a_config_of_an_unknown_architecture_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4], "depths": [1]}))
    with pytest.raises(UnknownArchitectureError, match="known families"):
        create(str(path), CLASSES, seed=0)


def test_a_misspelt_preset_is_told() -> None:
    with pytest.raises(WeightsmithError, match=r"--model digit is no preset.*did you mean 'digits'\?"):
        create("digit", CLASSES, seed=0)


def test_a_new_head_changes_the_head_and_nothing_else(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path / "model")
    fresh = create(str(tmp_path / "model"), ("x", "y", "z", "u", "v", "w"), seed=0)
    old, new = model.module.state_dict(), fresh.module.state_dict()
    assert set(old) == set(new)
    changed = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    head = model.family.classifier
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert fresh.class_names == ("x", "y", "z", "u", "v", "w")
    assert fresh.preprocess == model.preprocess
    assert not torch.equal(new[f"{head}.weight"], torch.zeros_like(new[f"{head}.weight"]))
    save(fresh, tmp_path / "fresh")
    assert weights_hash(load(tmp_path / "fresh")) == weights_hash(fresh)
    assert load(tmp_path / "fresh").class_names == fresh.class_names


def test_a_compiled_network_is_taken_as_it_was_before(tiny_model: Callable[..., Model]) -> None:
    network = tiny_model("vit").module
    assert load(torch.compile(network)).module is network
    network.vit.layers[1].compile()
    with pytest.raises(WeightsmithError, match=r"vit\.layers\.1 was compiled in place .* give the network as it was"):
        load(network)
