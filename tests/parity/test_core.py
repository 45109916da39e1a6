"""The solver beside what the published MEMIT, EMMET and AlphaEdit compute from the same keys, residuals and moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from weightsmith.edit.metric import InverseMoment, NullSpace
from weightsmith.edit.solver import Solution, solve

TAGS = ("E1", "E8", "E64", "E8_dup")
EMMET = {
    "w1_un0_le0.1": (1, 0, 0.1),
    "w1000_un0_le0.1": (1000, 0, 0.1),
    "w1_un0_le0": (1, 0, 0),
    "w1_un0.01_le0.1": (1, 0.01, 0.1),
}
Core = Callable[[str], dict[str, Tensor]]


@pytest.fixture
def core(shared_data: Path) -> Core:
    def read(name: str) -> dict[str, Tensor]:
        with np.load(shared_data / "parity" / f"{name}_core.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}

    return read


def apart(solution: Solution, deltaw: Tensor) -> float:
    """Relative difference to a change stored as (d, o)."""
    return float((solution.left @ solution.right - deltaw.mT).norm() / deltaw.norm())


def inputs(case: dict[str, Tensor], tag: str) -> tuple[Tensor, Tensor, Tensor]:
    return case[f"{tag}_K"], case[f"{tag}_R"], case[f"{tag}_C"]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("weight", [1, 15000])
def test_memit(core: Core, tag: str, weight: int) -> None:
    case = core("memit")
    k, r, c = inputs(case, tag)
    wanted = case[f"{tag}_deltaW_lam{weight}"]
    assert apart(solve(k, r, InverseMoment.of(c, weight), absolute_ridge=1.0), wanted) < 1e-6
    assert apart(solve(k, r, InverseMoment.of(c), absolute_ridge=weight), wanted) < 1e-6  # M = C⁻¹ with ρ = λ


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", EMMET)
def test_emmet(core: Core, tag: str, name: str) -> None:
    case = core("emmet")
    k, r, c = inputs(case, tag)
    weight, shift, ridge = EMMET[name]
    metric = InverseMoment.of(c, weight, shift=shift)
    solution = solve(k, r, metric, absolute_ridge=ridge if k.shape[1] > 1 else 0.0)
    assert apart(solution, case[f"{tag}_deltaW_{name}"]) < 1e-8
    # Where the published code falls back on a pseudo-inverse is where equal keys want different values, without ridge.
    assert bool(case[f"{tag}_deltaW_{name}_pinv_used"]) == (bool(solution.contradictory) and ridge == 0)
    assert solution.contradictory == (((0, 1),) if tag == "E8_dup" else ())
    assert solution.condition < 1e5


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("l2", [1, 10])
def test_alphaedit(core: Core, tag: str, l2: int) -> None:
    case = core("alphaedit")
    k, r, c = inputs(case, tag)
    space = NullSpace.of(c, threshold=2e-2)
    assert space.dimension == int(case[f"{tag}_null_rank"])
    projector = space.times(torch.eye(len(c), dtype=torch.float64))
    assert float((projector - case[f"{tag}_P"]).norm() / case[f"{tag}_P"].norm()) < 1e-3
    assert apart(solve(k, r, space, absolute_ridge=l2), case[f"{tag}_deltaW_L2_{l2}_nocache"]) < 1e-3
    cached = solve(k, r, space, absolute_ridge=l2, replayed=case[f"{tag}_Kp"])
    assert apart(cached, case[f"{tag}_deltaW_L2_{l2}_withcache"]) < 1e-3
    assert apart(cached, case[f"{tag}_deltaW_L2_{l2}_nocache"]) > 1e-2
