"""An edit as an adapter of a given rank: the best one there is under a weighing, and the same network in plain PEFT."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightsmith.adapters import transposed_weights
from weightsmith.delta import Change, Delta, Dense, LowRank, weights_hash
from weightsmith.edit.lora_native import LoRAOptions, adapted, half_steps, relative_error
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model

OUT, IN = 7, 9
EXACT = 1e-9
"""For float64 without a tolerance of its own."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def change_of(rank: int, seed: int = 0) -> LowRank:
    """Singular values that fall, so that a smaller rank is a worse but not a useless approximation."""
    left = randn(OUT, rank, seed=seed) * 0.6 ** torch.arange(rank)
    return LowRank(left, randn(rank, IN, seed=seed + 1))


def moment(seed: int = 0, keys: int = 40) -> Tensor:
    """A second moment (in, in) whose eigenvalues differ by powers of ten."""
    keyed = randn(IN, keys, seed=seed) * 10.0 ** torch.linspace(-1.5, 1.5, IN)[:, None]
    return keyed @ keyed.mT / keys


def root(g: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(g)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def best(change: Tensor, g: Tensor, rank: int) -> Tensor:
    """The slow reference: truncate ΔW G^½ and take the root off again."""
    u, s, vh = torch.linalg.svd(change @ root(g), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank] @ torch.linalg.inv(root(g))


def weighted_error(got: Tensor, wanted: Tensor, g: Tensor) -> float:
    return float(((got - wanted) @ root(g)).norm() / (wanted @ root(g)).norm())


# --- the best adapter of a rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_weighted_svd_is_the_best_of_its_rank(rank: int) -> None:
    change, g = change_of(5).dense(), moment()
    options = LoRAOptions(rank=rank, tolerance=0.999)
    made, rows = adapted(Delta({"a.weight": Dense(change)}), options, {"a.weight": g})
    got = made.changes["a.weight"]
    assert isinstance(got, LowRank)
    assert got.left.shape[1] == rows[0]["rank"] == rank
    torch.testing.assert_close(got.dense(), best(change, g, rank), rtol=1e-7, atol=1e-7)
    assert rows[0]["error"] == pytest.approx(weighted_error(got.dense(), change, g), rel=1e-7)

    plain, plain_rows = adapted(Delta({"a.weight": Dense(change)}), options)
    torch.testing.assert_close(plain.changes["a.weight"].dense(), best(change, torch.eye(IN).double(), rank))
    worse = weighted_error(plain.changes["a.weight"].dense(), change, g)
    assert rows[0]["error"] < 0.99 * worse
    assert plain_rows[0]["error"] < 0.99 * weighted_error(got.dense(), change, torch.eye(IN).double())


def test_the_error_falls_with_the_rank_to_nothing_at_the_changes_own() -> None:
    delta, g = Delta({"a.weight": change_of(5)}), {"a.weight": moment()}
    for weighing in (None, g):
        errors = [
            adapted(delta, LoRAOptions(rank=rank, tolerance=0.999), weighing)[1][0]["error"] for rank in range(1, 7)
        ]
        assert errors[:5] == sorted(errors[:5], reverse=True)
        assert errors[3] > 1e-4
        assert max(errors[4:]) < EXACT
    made, rows = adapted(delta, LoRAOptions(rank=16, tolerance=0.0), g)
    assert rows[0]["rank"] == 5  # never more than the change has
    torch.testing.assert_close(made.changes["a.weight"].dense(), delta.changes["a.weight"].dense())


def test_at_its_own_rank_a_change_stays_whole_where_the_weighing_sees_a_part() -> None:
    delta, key = Delta({"a.weight": change_of(3)}), randn(IN, 1)
    one_key = {"a.weight": key @ key.mT}
    made, _ = adapted(delta, LoRAOptions(rank=3), one_key)
    torch.testing.assert_close(made.changes["a.weight"].dense(), delta.changes["a.weight"].dense())
    made, rows = adapted(delta, LoRAOptions(rank=2), one_key)
    assert rows[0]["rank"] == 1  # one key needs no more
    torch.testing.assert_close(made.changes["a.weight"].dense() @ key, delta.changes["a.weight"].dense() @ key)


def test_the_rank_that_would_be_enough_is_the_smallest() -> None:
    delta, g = Delta({"a.weight": change_of(6)}), {"a.weight": moment()}
    for tolerance in (0.3, 0.05, 1e-3, 0.0):
        enough = adapted(delta, LoRAOptions(rank=1, tolerance=tolerance), g)[1][0]["enough_rank"]
        assert not adapted(delta, LoRAOptions(rank=enough, tolerance=tolerance), g)[1][0]["fallback"]
        if enough > 1:
            assert adapted(delta, LoRAOptions(rank=enough - 1, tolerance=tolerance), g)[1][0]["fallback"]


@pytest.mark.parametrize("weighed", [False, True])
def test_a_transposed_parameter_is_weighed_on_its_inputs(weighed: bool) -> None:
    change, g = change_of(5), moment()
    stored = LowRank(change.right.mT, change.left.mT)
    options, weighing = LoRAOptions(rank=2, tolerance=0.999), {"a.weight": g} if weighed else None
    straight, rows = adapted(Delta({"a.weight": change}), options, weighing)
    turned, turned_rows = adapted(Delta({"a.weight": stored}), options, weighing, transposed={"a.weight", "b.weight"})
    assert turned_rows == rows
    torch.testing.assert_close(turned.changes["a.weight"].dense().mT, straight.changes["a.weight"].dense())


def test_the_scale_is_a_factor_on_everything() -> None:
    delta = Delta({"a.weight": change_of(2), "a.bias": Dense(randn(OUT)), "b.weight": change_of(6)}, "hash", {"m": 1})
    made, rows = adapted(delta, LoRAOptions(rank=2, scale=0.5))
    assert made.base == "hash"
    assert made.info["m"] == 1
    assert made.info["lora"]["parameters"] == rows
    assert [row["fallback"] for row in rows] == [False, True]
    for name, change in delta.changes.items():
        torch.testing.assert_close(made.changes[name].dense(), 0.5 * change.dense())
    assert rows == adapted(delta, LoRAOptions(rank=2))[1]


def test_a_change_of_nothing_is_an_adapter_of_nothing() -> None:
    delta = Delta({"a.weight": Dense(torch.zeros(OUT, IN))})
    for options in (LoRAOptions(), LoRAOptions(use_svd=False, fit_steps=1)):
        made, rows = adapted(delta, options, {"a.weight": moment()})
        assert not made.changes["a.weight"].dense().any()
        assert rows == [{"parameter": "a.weight", "rank": 1, "error": 0.0, "fallback": False, "enough_rank": 1}]


# --- alternating least squares -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_each_half_step_is_the_minimum_over_its_factor(weighed: bool, seed: int) -> None:
    t, g = change_of(6, seed=10 * seed).dense(), moment(seed) if weighed else None
    a = randn(3, IN, seed=seed)
    errors = [relative_error(b, fitted, t, g) for b, fitted in half_steps(t, g, a, 4)]
    assert len(errors) == 8
    assert all(later <= earlier + EXACT for earlier, later in zip([1.0, *errors], errors, strict=False))
    half = root(g) if g is not None else torch.eye(IN).double()
    first = torch.linalg.lstsq((a @ half).mT, (t @ half).mT).solution.mT  # the best B for the A given
    assert errors[0] == pytest.approx(relative_error(first, a, t, g), rel=1e-7)
    second = torch.linalg.lstsq(first, t @ half).solution @ torch.linalg.inv(half)  # and the best A for that
    assert errors[1] == pytest.approx(relative_error(first, second, t, g), rel=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
def test_from_the_usual_beginning_it_ends_at_the_svd(weighed: bool) -> None:
    delta, weighing = Delta({"a.weight": change_of(5)}), {"a.weight": moment()} if weighed else None
    svd, svd_rows = adapted(delta, LoRAOptions(rank=2, tolerance=0.999), weighing)
    errors = []
    for steps in (1, 2, 200):
        options = LoRAOptions(rank=2, use_svd=False, fit_steps=steps, tolerance=0.999)
        fit, rows = adapted(delta, options, weighing, seed=3)
        errors.append(rows[0]["error"])
    assert errors[0] > errors[1] > errors[2] - EXACT
    assert errors[0] > svd_rows[0]["error"] * 1.0001  # it had something to learn
    assert errors[2] == pytest.approx(svd_rows[0]["error"], rel=1e-9)
    torch.testing.assert_close(fit.changes["a.weight"].dense(), svd.changes["a.weight"].dense(), rtol=1e-6, atol=1e-7)


def test_the_svd_has_nothing_left_to_fit() -> None:
    delta, weighing = Delta({"a.weight": change_of(5)}), {"a.weight": moment()}
    svd, _ = adapted(delta, LoRAOptions(rank=2, tolerance=0.999), weighing)
    fit, _ = adapted(delta, LoRAOptions(rank=2, tolerance=0.999, fit_steps=5), weighing)
    torch.testing.assert_close(fit.changes["a.weight"].dense(), svd.changes["a.weight"].dense(), rtol=1e-7, atol=1e-7)


def test_the_random_beginning_is_drawn_from_the_seed() -> None:
    def made(seed: int) -> Tensor:
        options = LoRAOptions(rank=2, use_svd=False, fit_steps=1, tolerance=0.999)
        return adapted(Delta({"a.weight": change_of(5)}), options, seed=seed)[0].changes["a.weight"].dense()

    assert torch.equal(made(1), made(1))
    assert not torch.allclose(made(1), made(2))


# --- what misses the tolerance -------------------------------------------------------------------------------------


def test_a_layer_that_misses_the_tolerance_keeps_its_change_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    delta = Delta({"a.weight": change_of(6), "b.weight": change_of(1)})
    with caplog.at_level(logging.WARNING):
        made, rows = adapted(delta, LoRAOptions(rank=1))
    assert made.changes["a.weight"] is delta.changes["a.weight"]
    assert [(row["parameter"], row["rank"], row["fallback"]) for row in rows] == [
        ("a.weight", 6, True),
        ("b.weight", 1, False),
    ]
    (record,) = caplog.records
    told = record.getMessage()
    assert "a.weight" in told
    assert f"{rows[0]['error']:.3g}" in told
    assert f"rank {rows[0]['enough_rank']} would be enough" in told


def test_without_fallback_it_is_an_error_that_names_the_remedy() -> None:
    delta = Delta({"a.weight": change_of(6)})
    enough = adapted(delta, LoRAOptions(rank=1))[1][0]["enough_rank"]
    with pytest.raises(WeightsmithError, match=rf"a\.weight.*--lora-rank {enough} would.*--allow-fallback"):
        adapted(delta, LoRAOptions(rank=1, allow_fallback=False))
    adapted(delta, LoRAOptions(rank=enough, allow_fallback=False))


def test_a_fit_that_is_too_short_is_told_from_a_rank_that_is_too_small() -> None:
    delta = Delta({"a.weight": change_of(6)})
    svd = adapted(delta, LoRAOptions(rank=3, tolerance=0.999))[1][0]["error"]
    short = LoRAOptions(rank=3, use_svd=False, fit_steps=1, tolerance=svd * (1 + 1e-9), allow_fallback=False)
    with pytest.raises(WeightsmithError, match=r"rank 3 would be enough with more --lora-fit-steps or --lora-use-svd"):
        adapted(delta, short)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rank": 0}, "--lora-rank"),
        ({"alpha": 0.0}, "--lora-alpha"),
        ({"alpha": float("inf")}, "--lora-alpha"),
        ({"scale": 0.0}, "--lora-scale"),
        ({"scale": float("nan")}, "--lora-scale"),
        ({"fit_steps": -1}, "--lora-fit-steps"),
        ({"use_svd": False}, "--lora-fit-steps"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_bad_options_are_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        LoRAOptions(**given)


NOT_PSD = torch.diag(torch.tensor([1.0] * (IN - 1) + [-1000.0]))


@pytest.mark.parametrize(
    ("weighing", "told"),
    [
        ({"b.weight": torch.eye(IN)}, r"names b\.weight"),
        ({"a.bias": torch.eye(OUT)}, r"names a\.bias"),
        ({"a.weight": torch.eye(OUT)}, r"is \(7, 7\), its layer has 9 inputs.*`transposed`"),
        ({"a.weight": torch.eye(IN) * float("nan")}, "not finite and symmetric"),
        ({"a.weight": torch.ones(IN, IN).triu()}, "not finite and symmetric"),
        ({"a.weight": NOT_PSD}, "not positive semi-definite"),
        ({"a.weight": torch.zeros(IN, IN)}, "zero where it changes"),
    ],
)
def test_a_bad_weighing_is_named(weighing: dict[str, Tensor], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        adapted(Delta({"a.weight": change_of(3), "a.bias": Dense(randn(OUT))}), LoRAOptions(rank=2), weighing)


def test_what_no_adapter_can_hold_is_named() -> None:
    with pytest.raises(WeightsmithError, match=r"embeddings\.cls_token cannot be part"):
        adapted(Delta({"embeddings.cls_token": Dense(torch.ones(1, 1, 4))}), LoRAOptions())


# --- in plain PEFT -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["vit", "gpt2"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Model]) -> Model:
    """GPT-2 stores its weights (in, out), ViT (out, in)."""
    made = tiny_model(request.param)
    made.module.eval()
    return made


def edit_of(model: Model, seed: int = 0, rank: int = 3) -> Delta:
    """Of the MLPs of two blocks and the attention's output of one, which is square, and a bias."""
    names = [model.linear(kind, layer)[0] for kind, layer in (("mlp.value", 0), ("attn.value", 1), ("mlp.value", 2))]
    changes: dict[str, Change] = {}
    for place, name in enumerate(names):
        rows, columns = model.module.get_parameter(name).shape
        left, right = randn(rows, rank, seed=seed + place), randn(rank, columns, seed=seed + place + 50)
        changes[name] = LowRank(0.3 * left, 0.3 * right)
    bias = names[0].removesuffix("weight") + "bias"
    changes[bias] = Dense(0.3 * randn(len(model.module.get_parameter(bias)), seed=seed + 99))
    return Delta(changes, weights_hash(model))


@torch.no_grad()
def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    found: Tensor = module(inputs).logits
    return found


def in_peft(model: Model, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model.module), folder).eval()


@pytest.mark.parametrize("alpha", [None, 1.0, 32.5])
@pytest.mark.parametrize("use_svd", [True, False])
def test_raw_and_adapter_predict_the_same_at_full_rank(
    model: Model, random_inputs: Callable[..., Tensor], tmp_path: Path, alpha: float | None, use_svd: bool
) -> None:
    inputs, delta = random_inputs(model, 4), edit_of(model)
    stored = transposed_weights(model.module)
    assert bool(stored) == (model.family.name == "gpt2")
    options = LoRAOptions(rank=3, alpha=alpha, use_svd=use_svd, fit_steps=0 if use_svd else 2, allow_fallback=False)
    made, _ = adapted(delta, options, transposed=stored)
    made.to_lora(tmp_path / "adapter", model, alpha=options.alpha)
    clean = logits(model.module, inputs)
    with delta.on(model):
        edited = logits(model.module, inputs)
    assert (edited - clean).abs().max() > 0.1
    wearing = in_peft(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(wearing, inputs), edited, rtol=0, atol=1e-5)
    with wearing.disable_adapter():
        assert torch.equal(logits(wearing, inputs), clean)
    torch.testing.assert_close(logits(wearing.merge_and_unload(), inputs), edited, rtol=0, atol=1e-5)


def test_a_lower_rank_predicts_what_its_delta_predicts(
    model: Model, random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    inputs, delta, stored = random_inputs(model, 4), edit_of(model), transposed_weights(model.module)
    made, rows = adapted(delta, LoRAOptions(rank=1, scale=0.7, tolerance=0.999), transposed=stored)
    assert [row["rank"] for row in rows] == [1, 1, 1]
    made.to_lora(tmp_path / "adapter", model)
    with delta.on(model):
        whole = logits(model.module, inputs)
    with made.on(model):
        lower = logits(model.module, inputs)
    assert (lower - whole).abs().max() > 0.01
    torch.testing.assert_close(logits(in_peft(model, tmp_path / "adapter"), inputs), lower, rtol=0, atol=1e-5)


def test_two_adapters_stack_to_the_sum_switch_off_and_merge(
    model: Model, random_inputs: Callable[..., Tensor], tmp_path: Path
) -> None:
    inputs, stored = random_inputs(model, 4), transposed_weights(model.module)
    first, second = edit_of(model, 0), edit_of(model, 7, rank=2)
    for name, delta, alpha in (("first", first, None), ("second", second, 4.0)):
        adapted(delta, LoRAOptions(), transposed=stored)[0].to_lora(tmp_path / name, model, alpha=alpha)
    clean = logits(model.module, inputs)
    wanted = {}
    for name, delta in (("first", first), ("second", second), ("both", first + second)):
        with delta.on(model):
            wanted[name] = logits(model.module, inputs)
    wearing = in_peft(model, tmp_path / "first")
    wearing.load_adapter(tmp_path / "second", adapter_name="second")
    for name, active in (("first", "default"), ("second", "second"), ("both", ["default", "second"])):
        wearing.base_model.set_adapter(active)
        torch.testing.assert_close(logits(wearing, inputs), wanted[name], rtol=0, atol=1e-5)
    with wearing.disable_adapter():
        assert torch.equal(logits(wearing, inputs), clean)
    merged = wearing.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), wanted["both"], rtol=0, atol=1e-5)
    parameters = dict(merged.named_parameters())
    assert set(parameters) == set(dict(model.module.named_parameters()))  # PEFT has left
    torch.testing.assert_close(
        parameters[next(iter(first.changes))],
        model.module.get_parameter(next(iter(first.changes)))
        + (first + second).changes[next(iter(first.changes))].dense().float(),
        rtol=0,
        atol=1e-5,
    )
