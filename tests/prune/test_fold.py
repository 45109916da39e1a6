"""The fold against a least-squares solver on the keys themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.prune import KeyStatistic, folded

KEPT, GONE = (0, 2, 3, 7, 8), (1, 4, 5, 6)


def keys_of(n: int = 200, d: int = 9) -> Tensor:
    """(n, d) correlated keys with a mean."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + mix[0]


def statistic_of(keys: Tensor) -> KeyStatistic:
    return KeyStatistic(keys.mean(0), torch.cov(keys.T, correction=0), len(keys))


@pytest.fixture
def linear() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 9, generator=generator).double(), torch.randn(6, generator=generator).double()


@pytest.mark.parametrize("ridge", [1e-9, 1e-3, 0.3])
def test_the_ridge_fold_is_the_ridge_regression_of_the_outputs(linear: tuple[Tensor, Tensor], ridge: float) -> None:
    """By rows: keys with a row of √(nλ) for each entry appended, and numpy's solver; the centred outputs are regressed.

    The penalty is on what is added, W' − W_K, so what the kept keys give is taken off the outputs first.
    """
    weight, bias = linear
    keys = keys_of()
    wanted = keys @ weight.T + bias
    kept = keys[:, KEPT]
    centred = kept - kept.mean(0)
    rest = wanted - kept @ weight[:, KEPT].T
    strength = ridge * float(centred.square().mean())
    rows = np.concatenate([centred.numpy(), np.sqrt(len(keys) * strength) * np.eye(len(KEPT))])
    goal = np.concatenate([(rest - rest.mean(0)).numpy(), np.zeros((len(KEPT), 6))])
    added = torch.from_numpy(np.linalg.lstsq(rows, goal, rcond=None)[0]).T
    w, b = folded(weight, bias, KEPT, statistic_of(keys), "ridge", ridge)
    torch.testing.assert_close(w, weight[:, KEPT] + added, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close((kept @ w.T + b).mean(0), wanted.mean(0), rtol=1e-10, atol=1e-10)


def test_without_a_ridge_no_linear_map_of_the_kept_keys_is_nearer(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    wanted = keys @ weight.T + bias
    with_one = np.concatenate([keys[:, KEPT].numpy(), np.ones((len(keys), 1))], 1)
    best, *_ = np.linalg.lstsq(with_one, wanted.numpy(), rcond=None)
    w, b = folded(weight, bias, KEPT, statistic_of(keys), "ridge", 0.0)
    torch.testing.assert_close(torch.cat([w, b[:, None]], 1), torch.from_numpy(best).T, rtol=1e-8, atol=1e-8)
    misses = {
        fold: float((keys[:, KEPT] @ w.T + b - wanted).square().mean())
        for fold in ("ridge", "mean", "none")
        for w, b in [folded(weight, bias, KEPT, statistic_of(keys), fold)]
    }
    assert misses["ridge"] < 0.9 * misses["mean"] < 0.9 * misses["none"]


def test_mean_and_none_by_hand(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    held = keys.clone()
    held[:, GONE] = keys[:, GONE].mean(0)
    w, b = folded(weight, bias, KEPT, statistic_of(keys), "mean")
    torch.testing.assert_close(keys[:, KEPT] @ w.T + b, held @ weight.T + bias)
    held[:, GONE] = 0
    w, b = folded(weight, bias, KEPT, None, "none")
    torch.testing.assert_close(keys[:, KEPT] @ w.T + b, held @ weight.T + bias)


def test_keys_that_follow_from_the_others_are_folded_without_loss(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    keys[:, 1] = 2.0  # constant
    keys[:, [4, 5]] = keys[:, [0, 2]] @ torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64) + 1
    keys[:, 6] = keys[:, 8]
    w, b = folded(weight, bias, KEPT, statistic_of(keys), "ridge", 1e-12)
    torch.testing.assert_close(keys[:, KEPT] @ w.T + b, keys @ weight.T + bias, rtol=1e-7, atol=1e-7)


def test_all_kept_is_the_same_tensor_and_none_kept_the_mean_output(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    same = folded(weight, bias, range(9), None)
    assert same[0] is weight
    assert same[1] is bias
    for fold in ("ridge", "mean"):
        w, b = folded(weight, bias, (), statistic_of(keys), fold)
        assert w.shape == (6, 0)
        torch.testing.assert_close(b, (keys @ weight.T + bias).mean(0))
    assert torch.equal(folded(weight, bias, (), None, "none")[1], bias)


def test_kept_keys_that_never_vary_explain_nothing(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    keys[:, KEPT] = 1.5
    statistic = statistic_of(keys)
    for ridge in (0.0, 1e-3):
        found = folded(weight, bias, KEPT, statistic, "ridge", ridge)
        for one, other in zip(found, folded(weight, bias, KEPT, statistic, "mean"), strict=True):
            torch.testing.assert_close(one, other)


def test_mixing_populations_is_pooling_their_keys() -> None:
    first, second = keys_of(60), keys_of(20).square()
    pooled = statistic_of(torch.cat([first, second]))
    mixed = statistic_of(first).mixed(statistic_of(second), 0.25)
    torch.testing.assert_close(mixed.mean, pooled.mean)
    torch.testing.assert_close(mixed.covariance, pooled.covariance)


def test_what_cannot_be_folded_is_told(linear: tuple[Tensor, Tensor]) -> None:
    weight, bias = linear
    keys = keys_of()
    keys[:, 2] = keys[:, 0]
    statistic = statistic_of(keys)
    exact = KeyStatistic(statistic.mean, torch.ones(9, 9, dtype=torch.float64), 1)
    for fold, ridge, given, told in (
        ("rigde", 1e-3, statistic, "fold='rigde'"),
        ("ridge", -1.0, statistic, "ridge=-1"),
        ("ridge", float("nan"), statistic, "ridge=nan"),
        ("mean", 1e-3, None, "needs calibration images"),
        ("ridge", 0.0, exact, "larger ridge"),
    ):
        with pytest.raises(WeightsmithError, match=told):
            folded(weight, bias, KEPT, given, fold, ridge)
