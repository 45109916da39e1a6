"""One batch of closed-form edits, spread over layers and repeated until every margin is met.

What editors share: target values, keys re-measured on the partly edited model, the residual divided over the layers
that are left (MEMIT, Meng et al., 2023, algorithm 1), and the log. They differ in a metric a layer and in the ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith import mapped
from weightsmith.delta import Delta, LowRank, weights_hash
from weightsmith.edit.corrections import Corrections, Goal, Measured
from weightsmith.edit.metric import Guarded, Metric
from weightsmith.edit.solver import Solution, solve
from weightsmith.edit.targets import TargetOptions
from weightsmith.errors import WeightsmithError
from weightsmith.files import default_cache_dir, remove_abandoned
from weightsmith.models import Model


@dataclass(frozen=True)
class Ridge:
    """ρ of the solver: relative to mean diag(Kᵀ M K), or absolute as the papers state it; exactly one of both."""

    relative: float | None = None
    absolute: float | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """One linear map to edit.

    Attributes:
        kind, layer: its value site's kind, and its block (None for the classifier).
        metric: M; moment: the preserved keys' second moment (d, d) that M was made from.
        guarded: M under which keys of earlier edits cost too; None without any. The ridge is relative to M.
    """

    kind: str
    layer: int | None
    metric: Metric
    moment: Tensor
    guarded: Guarded | None = None

    def put_aside(self, cache_dir: Path | None) -> Place:
        """The same with its matrices in files of their own, where memory is short; `release` forgets what was read of them.

        Raises:
            WeightsmithError: the cache folder's disk is full, or it cannot be written.
        """
        folder = cache_dir or default_cache_dir()
        metric: Any = self.metric
        remove_abandoned(folder)  # matrices of processes that were killed before their files had lost their names
        try:
            mine = {name: mapped.put_aside(matrix, folder) for name, matrix in _matrices(metric).items()}
            moment = mapped.put_aside(self.moment, folder)
        except OSError as error:
            raise WeightsmithError(
                f"matrices that memory has no room for cannot be put into {folder} ({error}): free space there, or give "
                "another --cache-dir"
            ) from error
        return replace(self, metric=replace(metric, **mine), moment=moment)

    def release(self) -> None:
        """Forget what was read of matrices that were put aside."""
        mapped.release([self.moment, *_matrices(self.metric).values()])


def _matrices(metric: Any) -> dict[str, Tensor]:
    """The large tensors of a metric, by its field."""
    held = {field.name: getattr(metric, field.name) for field in fields(metric)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor) and value.ndim == 2}


_PATIENCE = 3
"""Rounds that bring nothing before a batch is given up."""

Solve = Callable[[Measured, Tensor, Place], Solution]
"""From what was measured at a place and the residuals wanted there (E, width) to a change of its linear map."""


def ridged(ridge: Ridge) -> Solve:
    """The solver's form: ΔW = R (Kᵀ M K + ρ I)⁻¹ Kᵀ M."""

    def solution(measured: Measured, share: Tensor, place: Place) -> Solution:
        keys = measured.keys.mT.cpu()
        rho = ridge.absolute
        if place.guarded is not None and ridge.relative is not None:
            rho = ridge.relative * mean_pull(place.metric, keys)  # the same as without earlier edits
        return solve(
            keys,
            share.mT.cpu(),
            place.guarded or place.metric,
            ridge=ridge.relative if rho is None else None,
            absolute_ridge=rho,
            weights=measured.weights,
        )

    return solution


def mean_pull(metric: Metric, keys: Tensor) -> float:
    """Mean diag(Kᵀ M K) of keys (d, E), what relative ridges are relative to."""
    k = keys.double()
    return float((k * metric.times(k)).sum(0).mean())


def edit_batch(
    model: Model,
    corrections: Corrections,
    places: Sequence[Place],
    solution_for: Solve,
    options: TargetOptions,
    rounds: int,
    stated: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> Delta:
    """Solve for all requests together; the model is as it was afterwards.

    A round aims at the values that meet every margin, then edits the places in order. Because ρ > 0 and the places
    interact, a round can fall short; the next one starts from the edited model and solves for what is left. Requests
    that hold by then enter with a residual of zero, which protects them.

    Args:
        places: in the order of the network.
        rounds: at most this many.
        stated: kind of site at which the wanted values are stated; None takes the residual stream behind the last
            place, or where there is none, the last place itself.
        weights: name of a request → how much it counts; those without one count 1.

    Returns:
        The delta; its `info` holds "requests" (a row each) and "solves" (a row a round and place).
    """
    delta = Delta({}, weights_hash(model))
    goal = Goal(stated or _stream(model, places[-1]), places[-1].layer)
    solves: list[dict[str, Any]] = []
    residuals = torch.zeros(len(corrections))
    best, least, since = delta, float("inf"), 0
    for number in range(rounds + 1):
        with delta.on(model, check=False):
            missing = (options.margin - corrections.leads(model)).clamp(min=0)
            if float(missing.sum()) < least:
                best, least, since = delta, float(missing.sum()), 0
            else:
                since += 1
            reached = options.stop_loss is None and bool((missing <= options.margin / 2).all())
            if reached or number == rounds or since == _PATIENCE:
                break
            wanted = corrections.wanted(model, goal, options).values
        for position, place in enumerate(places):
            with delta.on(model, check=False):
                measured = corrections.measure(model, place.kind, place.layer, goal)
            if weights:
                omega = [weights.get(name, 1.0) for name in corrections.columns(place.layer)]
                measured = replace(measured, weights=torch.tensor(omega, dtype=torch.float64))
            share = (wanted - measured.present) / (len(places) - position)
            if number == position == 0 and len(share) == len(residuals):
                residuals = (wanted - measured.present).norm(dim=1).cpu()
            solution = solution_for(measured, share, place)
            name, transposed, _ = model.linear(place.kind, place.layer)
            change = LowRank(solution.left, solution.right)
            if transposed:
                change = LowRank(change.right.mT.contiguous(), change.left.mT.contiguous())
            delta = delta.then(Delta({name: change}))
            solves.append(
                {
                    "round": number + 1,
                    "layer": place.layer,
                    "residual_norm": float(share.norm()),
                    "update_norm": solution.norm(),
                    "condition": solution.condition,
                    "ridge": solution.ridge,
                    "rank": solution.rank,
                    "division": solution.division,
                    "leakage": solution.leakage(place.moment),
                    "same_keys": _named(corrections, place, solution.merged),
                    "contradictory": _named(corrections, place, solution.contradictory),
                }
            )
            place.release()
    if rounds > 1:
        delta = best  # keys that are too much alike can make a later round lose what an earlier one had
    return finished(model, corrections, delta.compressed(), residuals, {"solves": solves, "targets": asdict(options)})


def finished(model: Model, corrections: Corrections, delta: Delta, residuals: Tensor, info: dict[str, Any]) -> Delta:
    """The delta with one row a request in its info: answer before and after, residual and update norms, success."""
    before = corrections.answers(model)
    with delta.on(model, check=False):
        after = corrections.answers(model)
    norm = delta.norm()
    rows = [
        {
            "sample": row["sample"],
            "before": before[i]["answer"],
            "target": row["target"],
            "after": after[i]["answer"],
            "residual_norm": float(residuals[i]),
            "update_norm": norm,
            "margin": after[i]["margin"],
            "success": after[i]["success"],
        }
        for i, row in enumerate(corrections.rows())
    ]
    return Delta(delta.changes, delta.base, {**info, "requests": rows})


def _named(corrections: Corrections, place: Place, pairs: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
    """Names of the requests whose keys the solver found to be one."""
    names = corrections.columns(place.layer)
    return [(names[a], names[b]) for a, b in pairs]


def _stream(model: Model, last: Place) -> str:
    """Where the goal is stated: in the residual stream behind the last block, or where there is none, at the value."""
    if last.layer is None or not model.family.spreads:
        return last.kind
    return "resid.out"


def check_places(model: Model, layers: Sequence[int]) -> None:
    """Raise `WeightsmithError` for several layers in a network without a residual stream to spread a residual over."""
    if len(layers) > 1 and not model.family.spreads:
        raise WeightsmithError(
            f"{model.name} has no residual stream that its maps add to as it is, so one edit cannot be spread over "
            f"{len(layers)} layers: give a single layer to --edit-layers"
        )
