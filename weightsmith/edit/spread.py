"""One batch of closed-form edits, spread over layers and repeated until every margin is met.

What editors share: target values, keys re-measured on the partly edited model, the residual divided over the layers
that are left (MEMIT, Meng et al., 2023, algorithm 1), and the log. They differ in a metric a layer and in the ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from weightsmith.delta import Delta, LowRank, weights_hash
from weightsmith.edit.solver import Metric, solve
from weightsmith.edit.values import TargetOptions, logits_to_reach, margins, target_values
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.request import ImageRequest, stack_images, targets
from weightsmith.site import Site


@dataclass(frozen=True)
class Ridge:
    """ρ of the solver: relative to mean diag(Kᵀ M K), or absolute as the papers state it; exactly one of both."""

    relative: float | None = None
    absolute: float | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """One linear map to edit: its value site's kind, its block (None for the classifier), its metric and moment."""

    kind: str
    layer: int | None
    metric: Metric
    moment: Tensor


def edit_batch(
    model: Model,
    requests: Sequence[ImageRequest],
    places: Sequence[Place],
    ridge: Ridge,
    options: TargetOptions,
    rounds: int,
) -> Delta:
    """Solve for all requests together; the model is as it was afterwards.

    A round aims at the values that meet every margin, then edits the places in order. Because ρ > 0 and the places
    interact, a round can fall short; the next one starts from the edited model and solves for what is left. Requests
    that hold by then enter with a residual of zero, which protects them.

    Args:
        places: in the order of the network.
        rounds: at most this many.

    Returns:
        The delta; its `info` holds "requests" (a row each) and "solves" (a row a round and place).
    """
    pixels = model.preprocess(stack_images(requests), model.device)
    wanted = targets(requests).to(model.device)
    delta = Delta({}, weights_hash(model))
    solves: list[dict[str, Any]] = []
    residuals = torch.zeros(len(requests))
    for number in range(rounds):
        with delta.on(model, check=False):
            if bool((margins(_logits(model, pixels), wanted) >= options.margin / 2).all()):
                break
            goal = _goal(model, pixels, places[-1], wanted, options)
        for position, place in enumerate(places):
            with delta.on(model, check=False):
                keys, present = _measure(model, pixels, place, places[-1])
            share = (goal - present) / (len(places) - position)
            if number == position == 0:
                residuals = (goal - present).norm(dim=1).cpu()
            solution = solve(
                keys.mT.cpu(), share.mT.cpu(), place.metric, ridge=ridge.relative, absolute_ridge=ridge.absolute
            )
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
                    "leakage": solution.change_on(place.moment) / max(float(share.norm()), 1e-12),
                }
            )
    return finished(model, requests, delta.compressed(), residuals, {"solves": solves, "targets": asdict(options)})


def finished(
    model: Model, requests: Sequence[ImageRequest], delta: Delta, residuals: Tensor, info: dict[str, Any]
) -> Delta:
    """The delta with one row a request in its info: class before and after, residual and update norms, success."""
    pixels = model.preprocess(stack_images(requests), model.device)
    with delta.on(model, check=False):
        logits = _logits(model, pixels)
    reached = margins(logits, targets(requests).to(logits.device)).tolist()
    after = logits.argmax(-1).tolist()
    norm = delta.norm()
    rows = [
        {
            "sample": request.name,
            "class_before": request.predicted,
            "target": request.target,
            "class_after": after[i],
            "residual_norm": float(residuals[i]),
            "update_norm": norm,
            "margin": reached[i],
            "success": after[i] == request.target,
        }
        for i, request in enumerate(requests)
    ]
    return Delta(delta.changes, delta.base, {**info, "requests": rows})


@torch.no_grad()
def _logits(model: Model, pixels: Tensor) -> Tensor:
    return model.logits(pixels)


def _goal(model: Model, pixels: Tensor, last: Place, wanted: Tensor, options: TargetOptions) -> Tensor:
    """Z (E, width): where the last place's output should be so that every margin is met."""
    if last.layer is None:
        return logits_to_reach(_logits(model, pixels), wanted, options.margin)
    site = Site(_stream(model, last), last.layer)
    with torch.no_grad():
        hidden = record(model, pixels, [site])[site]
    return target_values(model, hidden, site, wanted, options).values


@torch.no_grad()
def _measure(model: Model, pixels: Tensor, place: Place, last: Place) -> tuple[Tensor, Tensor]:
    """Keys (E, d) at a place and the present value (E, width) where the goal is stated."""
    key = model.lookup(model.key_of(place.kind), place.layer)
    value = model.lookup(_stream(model, last), last.layer)
    seen = record(model, pixels, [key, value])
    return seen[key].flatten(1), seen[value].flatten(1)


def _stream(model: Model, last: Place) -> str:
    """Where the goal is stated: in the residual stream behind the last block, or where there is none, at the value."""
    if last.layer is None or "resid.mid" not in model.family.sites:
        return last.kind
    return "resid.out"


def check_places(model: Model, layers: Sequence[int]) -> None:
    """Raise `WeightsmithError` for several layers in a network without a residual stream to spread a residual over."""
    if len(layers) > 1 and "resid.mid" not in model.family.sites:
        raise WeightsmithError(
            f"{model.name} has no residual stream, so one edit cannot be spread over {len(layers)} layers: "
            "give a single layer to --edit-layers"
        )
