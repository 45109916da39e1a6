"""`weightsmith merge` through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.run.conftest import Outcome, assert_refused
from weightsmith.merge import METHODS
from weightsmith.models import load, save
from weightsmith.run.options.merge import MergeMethod


def check_refused(outcome: Outcome, *words: str) -> None:
    assert_refused(outcome, list(words))


@pytest.fixture
def folders(tiny_model, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and two models near it, as Hugging Face folders."""
    made = []
    for name, step in (("base", 0.0), ("one", 0.03), ("two", -0.01)):
        model = tiny_model("vit")
        with torch.no_grad():
            for place, parameter in enumerate(model.module.parameters()):
                parameter.add_(step * (1 + place % 3))
        save(model, tmp_path / name)
        made.append(tmp_path / name)
    return tuple(made)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_options_know_every_method() -> None:
    assert set(get_args(MergeMethod)) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(weightsmith, folders, tmp_path: Path, method: str) -> None:
    base, *models = folders
    models = models[:1] if method == "slerp" else models
    done = weightsmith("merge", "--method", method, "--base", base, "--models", *models, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "read back and equal" in done.out
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["method"] == method
    assert [entry["name"] for entry in report["models"]] == [str(model) for model in models]
    card = (tmp_path / "out" / "README.md").read_text()
    assert report["output"]["fingerprint"] in card
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())
    load(tmp_path / "out")


def test_flags_config_and_recipe_say_the_same(weightsmith, folders, tmp_path: Path) -> None:
    base, one, two = map(str, folders)
    flags = ["--method", "dare_ties", "--base", base, "--models", one, two, "--weights", "0.5", "-1"]
    flags += [
        "--lambda",
        "0.5",
        "--density",
        "0.75",
        "--dtype",
        "float16",
        "--max_shard_size",
        "2KB",
        "--head",
        "merge",
    ]
    assert weightsmith("merge", *flags, "--seed", 7, "--out", tmp_path / "a").status == 0
    entries = {
        "method": "dare_ties", "base": base, "models": [one, two], "weights": [0.5, -1], "lambda": 0.5, "density": 0.75,
        "dtype": "float16", "max_shard_size": "2KB", "seed": 7,
    }  # fmt: skip
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(entries))
    assert weightsmith("merge", "--config", tmp_path / "options.yaml", "--out", tmp_path / "b").status == 0
    recipe = {
        "merge_method": "dare_ties", "base_model": base, "dtype": "float16",
        "models": [
            {"model": base},
            {"model": one, "parameters": {"weight": 0.5, "density": 0.75}},
            {"model": two, "parameters": {"weight": -1, "density": 0.75}},
        ],
        "parameters": {"lambda": 0.5, "normalize": True},
    }  # fmt: skip
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = weightsmith("merge", "--mergekit", tmp_path / "recipe.yml", "--seed", 7, "--out", tmp_path / "c")
    assert done.status == 0
    assert "mergekitdrawsotherwise" in "".join(done.err.split())  # lines break where the terminal ends
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    for name, tensor in a.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, b[name])
        assert torch.equal(tensor, c[name])


def test_models_that_do_not_fit_or_are_damaged(weightsmith, folders, tmp_path: Path) -> None:
    base, one, two = folders
    flags = ["merge", "--base", base, "--models", one, two, "--out", tmp_path / "out"]
    shard = one / "model.safetensors"
    held = load_file(shard)
    save_file({name: tensor for name, tensor in held.items() if name != "classifier.bias"}, shard)
    check_refused(weightsmith(*flags), str(one), "classifier.bias")
    shard.write_bytes(shard.read_bytes()[:-100])
    check_refused(weightsmith(*flags), "model.safetensors", "damaged")


def test_folders_that_exist(weightsmith, folders, tmp_path: Path) -> None:
    base, one, _ = folders
    flags = ["merge", "--base", base, "--models", one, "--out", tmp_path / "out"]
    assert weightsmith(*flags).status == 0
    check_refused(weightsmith(*flags), "--overwrite")
    assert weightsmith(*flags, "--overwrite", "--lambda", 0).status == 0
    mine, theirs = weights(tmp_path / "out"), weights(base)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_stranger_is_told(weightsmith, folders, tiny_model, tmp_path: Path) -> None:
    base, one, _ = folders
    save(tiny_model("vit", seed=5), tmp_path / "stranger")
    done = weightsmith("merge", "--base", base, "--models", one, tmp_path / "stranger", "--out", tmp_path / "out")
    assert done.status == 0
    assert "strangerdiffersfromthebaseby" in "".join(done.err.split())


def test_a_merge_imports_no_torch(folders, tmp_path: Path) -> None:
    base, one, _ = map(str, folders)
    code = (
        "import sys; from weightsmith.cli import main; "
        f"main(['merge', '--method', 'ties', '--base', {base!r}, '--models', {one!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What it was made of" in page
