"""Streaming methods against flat ones, and the laws that every one keeps: coefficient 0, dtypes, shards, order, negation."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.merge.methods import reference
from weightsmith.errors import WeightsmithError
from weightsmith.merge import METHODS, Checkpoint, create, merge, pieces
from weightsmith.merge.methods.radix import largest
from weightsmith.merge.pieces import Sources

WEIGHTS = {"slerp": [0.3], "model_stock": [1.0, 1.0], "linear": [0.7, 0.4]}
EXACT = ("task_arithmetic", "ties")
"""Methods whose order of operations is that of the reference."""


def blended(method: str, base: dict, models: list[dict], weights: list[float], **parameters: Any) -> dict:
    """What a method makes of tensors in memory, put together from its pieces."""
    made = create(method, **parameters)
    names = tuple(reference.floats(base))
    sources = Sources(Checkpoint.open(base), tuple(Checkpoint.open(model) for model in models), tuple(weights), names)
    blender, out = made.blender(sources), dict(base)
    for name in names:
        blend = blender(name)
        parts = [blend(piece).copy() for piece in sources.pieces(name)]
        kind = sources.base.kind(name)
        flat = kind.narrowed(np.concatenate(parts) if parts else np.empty(0, kind.computed))
        bits = torch.from_numpy(flat.view("u1").copy()).view(base[name].dtype) if flat.size else base[name].reshape(-1)
        out[name] = bits.reshape(base[name].shape)
    return out


def weights_of(method: str) -> list[float]:
    return WEIGHTS.get(method, [0.8, -0.35])


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.contiguous().reshape(-1).view(torch.uint8).equal(
        b.contiguous().reshape(-1).view(torch.uint8)
    )  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of ten elements, so that every tensor has several."""
    monkeypatch.setattr(pieces, "PIECE", 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("method", METHODS)
def test_parity_with_the_flat_way(
    small_pieces, tensors, changed, method: str, scale: float, dtype: torch.dtype
) -> None:
    base = tensors(0, dtype)
    weights = weights_of(method)
    models = [changed(base, seed, 0.8) for seed in range(1, 1 + len(weights))]
    mine = blended(method, base, models, weights, scale=scale)
    flat = getattr(reference, method)(base, models, weights, scale)
    for name in reference.floats(base):
        if method in EXACT and scale == 1 and dtype in (torch.float32, torch.float64):
            assert bits_equal(mine[name], flat[name]), name
        elif dtype in (torch.float32, torch.float64):
            assert torch.allclose(mine[name], flat[name], rtol=1e-5, atol=2e-6), (name, mine[name] - flat[name])
        else:  # where both round to two sides of a tie, a unit in the last place
            step = torch.finfo(dtype).eps
            assert torch.allclose(mine[name].float(), flat[name].float(), rtol=step, atol=1e-3 * step), name
        if method not in ("slerp", "model_stock"):
            assert (
                name == "nothing"
                or not bits_equal(mine[name], base[name])
                or method in ("ties", "breadcrumbs", "dare_ties")
            )
    for name in ("position_ids", "mask"):
        assert bits_equal(mine[name], base[name])


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(["lambda", "weights"]),
    st.sampled_from([None, "100", "400", "1KB"]),
    st.integers(0, 5),
)
def test_coefficient_0_is_the_base_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, method: str, dtype: torch.dtype, which: str, limit: str | None, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("zero")
    generator = torch.Generator().manual_seed(seed)
    base = {f"layer.{i}.weight": torch.randn(5, 4 + i, generator=generator).to(dtype) for i in range(4)}
    base |= {
        "bias": torch.tensor([0.0, -0.0, 1.0, -1e-7]).to(dtype),
        "ids": torch.arange(3),
        "scale": torch.tensor(-0.0).to(dtype),
    }
    models = [
        {n: t + (t.is_floating_point() * 0.1 * (i + 1)) for n, t in base.items()}
        for i in range(len(weights_of(method)))
    ]
    models = [{n: t.to(base[n].dtype) for n, t in model.items()} for model in models]
    scale = 0.0 if which == "lambda" else 1.0
    weights = weights_of(method) if which == "lambda" else [0.0] * len(models)
    done = merge(create(method, scale=scale), base, models, folder / "out", weights=weights, max_shard_size=limit)
    again = merge(create(method, scale=scale), done.path, models, folder / "of-shards", weights=weights)
    for made in (done, again):
        out = {name: tensor for file in made.path.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert sorted(out) == sorted(base)
        for name in base:
            assert bits_equal(out[name], base[name]), (method, name)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].negative and name != "slerp"])
def test_a_negative_weight_takes_a_task_away(tensors, changed, method: str) -> None:
    base = tensors()
    model = changed(base, 1)
    there, away = (blended(method, base, [model], [weight]) for weight in (1.0, -1.0))
    for name in reference.floats(base):
        change = there[name] - base[name]
        assert torch.allclose(base[name] - away[name], change, atol=1e-6)
    assert any(float((there[name] - base[name]).abs().sum()) > 0 for name in reference.floats(base))


def test_models_that_are_the_base_change_nothing(tensors) -> None:
    base = tensors()
    for method in METHODS:
        merged = blended(method, base, [dict(base)] * len(weights_of(method)), weights_of(method))
        assert all(bits_equal(merged[name], base[name]) for name in base), method


def test_what_dare_drops_depends_on_seed_and_name_alone(tensors, changed, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tensors()
    models = [changed(base, 1)]
    whole = blended("dare_linear", base, models, [1.0], seed=3)
    monkeypatch.setattr(pieces, "PIECE", 6)
    others = dict(reversed(base.items()))
    assert all(bits_equal(whole[n], t) for n, t in blended("dare_linear", others, models, [1.0], seed=3).items())
    alone = {"embed.weight": base["embed.weight"]}
    assert bits_equal(blended("dare_linear", alone, models, [1.0], seed=3)["embed.weight"], whole["embed.weight"])
    assert not bits_equal(blended("dare_linear", base, models, [1.0], seed=4)["embed.weight"], whole["embed.weight"])
    twice = blended("dare_linear", base, models * 2, [1.0, -1.0], seed=3)
    assert not bits_equal(twice["embed.weight"], base["embed.weight"])  # each model has draws of its own


def test_dare_keeps_its_share_and_the_mean() -> None:
    base, model = {"w": torch.zeros(200, 500)}, {"w": torch.ones(200, 500)}
    merged = blended("dare_linear", base, [model], [1.0], density=0.2)["w"]
    assert set(merged.unique().tolist()) == {0.0, 5.0}
    assert abs(float(merged.mean()) - 1) < 0.03  # a standard deviation of the mean is 0.006
    assert bits_equal(blended("dare_linear", base, [model], [1.0], density=1.0)["w"], model["w"])


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60),
    st.sampled_from(["f4", "f8"]),
    st.data(),
)
def test_order_statistics_are_exact(values: list[float], dtype: str, data: st.DataObject) -> None:
    numbers = np.array(values, dtype)
    ranks = data.draw(st.lists(st.integers(0, len(values) + 1), min_size=1, max_size=4))
    cut = data.draw(st.integers(0, len(values)))
    ordered = np.sort(np.abs(numbers))[::-1]
    expected = [np.inf if r == 0 else float(ordered[r - 1]) if r <= len(ordered) else 0.0 for r in ranks]
    assert largest(lambda: iter((numbers[:cut], numbers[cut:])), ranks, dtype) == expected


def test_slerp_goes_along_the_arc_and_lines_where_it_is_flat() -> None:
    base, model = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    assert torch.allclose(blended("slerp", base, [model], [0.5])["w"], torch.tensor([0.5, 0.5]).sqrt())
    opposite = {"w": torch.tensor([-1.0, 0.0])}
    assert torch.allclose(blended("slerp", base, [opposite], [0.25])["w"], torch.tensor([0.5, 0.0]))


def test_iso_c_leaves_what_nobody_changed() -> None:
    base = {"w": torch.zeros(6, 5)}
    low = {"w": torch.outer(torch.arange(6.0), torch.ones(5))}
    assert torch.linalg.matrix_rank(blended("iso_c", base, [low], [1.0])["w"]) == 1


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("tise", {}, "did you mean 'ties'"),
        ("slerp", {"density": 0.5}, "--density is no option of --method slerp, leave it out: known: --lambda"),
        ("ties", {"density": 0.0}, "--density must be a share"),
        ("ties", {"density": 1.5}, "--density must be a share"),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.6}, "--gamma 0.6 must be a share"),
        ("linear", {"scale": float("nan")}, "--lambda must be a finite number"),
    ],
)
def test_hyper_parameters_out_of_range(method: str, parameters: dict[str, float], words: str) -> None:
    with pytest.raises(WeightsmithError, match=words):
        create(method, **parameters)


@pytest.mark.parametrize(
    ("method", "weights", "words"),
    [
        ("linear", [1.0, -1.0], "--weights -1 makes no sense for --method linear"),
        ("slerp", [1.5], "no place between"),
        ("slerp", [-0.1], "no place between"),
        ("slerp", [0.5, 0.5], "exactly 1"),
        ("model_stock", [1.0], "at least 2"),
        ("model_stock", [1.0, 2.0], "leave --weights out"),
        ("ties", [float("inf")], "finite"),
    ],
)
def test_weights_that_make_no_sense(method: str, weights: list[float], words: str) -> None:
    with pytest.raises(WeightsmithError, match=words):
        create(method).check_weights(weights)


def test_every_method_tells_its_paper_and_symbols() -> None:
    for name, kind in METHODS.items():
        assert kind.name == name
        assert kind.title
        assert kind.paper
        assert "| paper | here |" in kind.__doc__
        assert replace(kind()) == kind()
        assert {field.name for field in fields(kind)} >= {"scale"}


def test_a_checkpoint_with_another_width_is_merged_in_the_wider(tensors, changed, tmp_path: Path) -> None:
    base = tensors(0, torch.bfloat16)
    model = {n: t.double() if t.is_floating_point() else t for n, t in changed(base, 1).items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(model, tmp_path / "model.safetensors")
    done = merge("task_arithmetic", tmp_path / "base.safetensors", [tmp_path / "model.safetensors"], tmp_path / "out")
    out = load_file(done.path / "model.safetensors")
    for name in reference.floats(base):
        assert bits_equal(out[name], model[name].to(torch.bfloat16)), name
