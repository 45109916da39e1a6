"""mergekit's YAML in our words, and what of it is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from weightsmith.errors import WeightsmithError
from weightsmith.merge.mergekit import Recipe, read_recipe


def read(folder: Path, entries: Any) -> Recipe:
    path = folder / "recipe.yml"
    path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    return read_recipe(path)


def two(**entries: Any) -> dict[str, Any]:
    """The base among the models, as mergekit's examples have it."""
    models = [
        {"model": "base"},
        {"model": "one", "parameters": {"weight": 0.5}},
        {"model": "two", "parameters": {"weight": -1}},
    ]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models} | entries


def test_task_arithmetic(tmp_path: Path) -> None:
    recipe = read(tmp_path, two(dtype="bfloat16", parameters={"lambda": 0.7, "normalize": False}))
    assert recipe.options == {
        "method": "task_arithmetic", "base": "base", "models": ("one", "two"), "weights": (0.5, -1.0), "lambda_": 0.7,
        "dtype": "bfloat16",
    }  # fmt: skip
    assert recipe.notes == ()


def test_ties_with_density(tmp_path: Path) -> None:
    recipe = read(tmp_path, two(merge_method="ties", parameters={"density": 0.3, "normalize": True, "int8_mask": True}))
    assert recipe.options["density"] == 0.3
    assert any("trims each tensor by itself" in note for note in recipe.notes)
    assert read(tmp_path, two(merge_method="dare_ties", parameters={"normalize": True})).options["density"] == 1.0


def test_slerp_and_a_mean_without_a_base(tmp_path: Path) -> None:
    models = [{"model": "base"}, {"model": "one"}]
    recipe = read(
        tmp_path, {"merge_method": "slerp", "base_model": "base", "models": models, "parameters": {"t": 0.25}}
    )
    assert recipe.options == {"method": "slerp", "base": "base", "models": ("one",), "weights": (0.25,)}
    recipe = read(tmp_path, {"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    assert recipe.options == {"method": "linear", "base": "base", "models": ("base", "one"), "weights": (1.0, 1.0)}
    assert "needs no base" in recipe.notes[0]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (two(merge_method="della"), "merge_method della, which is not supported"),
        (two(slices=[]), "slices is not supported"),
        (two(tokenizer_source="union"), "tokenizer_source is not supported"),
        (two(models=[]), "no list of models"),
        (two(models=[{"model": "base"}]), "no model beside the base"),
        (two(models=["one"]), "must be like `model: DIR`"),
        (two(base_model=None), "no base_model"),
        (two(dtype="int8"), "dtype int8"),
        (two(parameters={"normalize": True}), "normalize: true, which is not supported for task_arithmetic"),
        (two(merge_method="ties", parameters={"rescale": True}), "rescale: true"),
        (
            two(merge_method="dare_ties"),
            "leaves normalize: false, which is not supported for dare_ties: give normalize: true",
        ),
        (two(merge_method="dare_linear", parameters={"rescale": False}), "rescale: false"),
        (two(parameters={"epsilon": 0.1}), "parameters: epsilon is not supported"),
        (two(models=[{"model": "one", "parameters": {"weight": [0, 1]}}]), "weight is .*give a number"),
        (two(models=[{"model": "one", "parameters": {"weight": 1}}, {"model": "two"}]), "give every one a weight"),
        (
            two(
                models=[
                    {"model": n, "parameters": {"density": d, "weight": 1}} for n, d in (("one", 0.1), ("two", 0.2))
                ]
            ),
            "a density of its own",
        ),
        (two(merge_method="slerp"), "no parameters: t"),
        ("- 1", "must hold a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, entries: Any, words: str) -> None:
    with pytest.raises(WeightsmithError, match=words) as caught:
        read(tmp_path, entries)
    assert "recipe.yml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"absent\.yml cannot be read"):
        read_recipe(tmp_path / "absent.yml")
