"""A metric that guards earlier keys: the same update as with those keys as columns of residual zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weightsmith.edit.metric import Guarded, Identity, InverseMoment, Metric, NullSpace
from weightsmith.edit.solver import solve
from weightsmith.errors import WeightsmithError

D, E, P, OUT = 24, 3, 7, 5


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metrics() -> dict[str, Metric]:
    samples = made(D, 60, seed=9)
    moment = samples @ samples.mT / 60
    return {
        "identity": Identity(),
        "inverse moment": InverseMoment.of(moment),
        "null space": NullSpace.of(moment, fraction=0.8, floor=1e-3),
        "projector": NullSpace.of(moment, fraction=0.8),
    }


@pytest.mark.parametrize("name", list(metrics()))
@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_guarding_keys_is_replaying_them_with_residual_zero(name: str, weight: float) -> None:
    metric, rho = metrics()[name], 0.3
    keys, residuals, earlier = made(D, E), made(OUT, E, seed=1), made(D, P, seed=2)
    guarded = Guarded.of(metric, earlier, torch.full((P,), rho / weight, dtype=torch.float64))
    short = solve(keys, residuals, guarded, absolute_ridge=rho)
    long = solve(
        keys,
        residuals,
        metric,
        absolute_ridge=rho,
        replayed=earlier,
        replay_weights=torch.full((P,), weight, dtype=torch.float64),
    )
    torch.testing.assert_close(short.left @ short.right, long.left @ long.right, rtol=1e-9, atol=1e-11)
    assert short.right.shape[0] == E


@pytest.mark.parametrize("name", list(metrics()))
def test_keys_that_join_later_are_guarded_as_if_they_had_been_there(name: str) -> None:
    """More keys than dimensions too."""
    metric, earlier = metrics()[name], made(D, 3 * D, seed=3)
    slack = torch.linspace(0.1, 2.0, 3 * D, dtype=torch.float64)
    at_once = Guarded.of(metric, earlier, slack)
    step = Guarded.of(metric, earlier[:, :5], slack[:5])
    for first in range(5, 3 * D, 13):
        step = step.joined(earlier[:, first : first + 13], slack[first : first + 13])
    assert step.count == at_once.count == 3 * D
    probe = made(D, 4, seed=4)
    torch.testing.assert_close(step.times(probe), at_once.times(probe), rtol=1e-7, atol=1e-9)


def test_a_guarded_key_moves_less_the_smaller_its_slack() -> None:
    metric, keys, earlier = Identity(), made(D, E), made(D, P, seed=2)
    residuals = made(OUT, E, seed=1)
    moved = []
    for slack in (1e3, 1.0, 1e-3):
        guarded = Guarded.of(metric, earlier, torch.full((P,), slack))
        solution = solve(keys, residuals, guarded, absolute_ridge=0.1)
        moved.append(float((solution.left @ (solution.right @ earlier)).norm()))
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


def test_no_slack_is_refused() -> None:
    with pytest.raises(WeightsmithError, match="slack above 0"):
        Guarded.of(Identity(), made(D, P), torch.zeros(P))


def test_keys_of_another_width_are_refused() -> None:
    guarded = Guarded.of(Identity(), torch.eye(4, dtype=torch.float64)[:, :2], torch.ones(2, dtype=torch.float64))
    with pytest.raises(WeightsmithError, match="another layer or model"):
        guarded.joined(torch.ones(5, 1), torch.ones(1))
    with pytest.raises(WeightsmithError, match="do not fit"):
        guarded.joined(torch.ones(4, 2), torch.ones(1))
