"""ACDC over the units of a vision transformer: what can go when each removal alone may change the answers by so much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.circuit import UNIT_KINDS, Kept, Shape, Unit
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.measure.intervals import Interval, means
from weightsmith.progress import progress
from weightsmith.prune.trials import Trials
from weightsmith.scores import UnitScores


@dataclass(frozen=True, eq=False)
class AcdcResult:
    """What a search kept.

    Attributes:
        kept: heads and neurons that stay.
        kl: KL(whole ‖ smaller) over the images of the search, nats, mean with its 95% interval.
        rows: one a trial, in order: unit, kl_before, kl_after, added, taken (whether it went), macs (of an image, after
            it), passes (so far).
        passes: forward-equivalents over the images.
    """

    kept: Kept
    kl: Interval
    rows: tuple[dict[str, Any], ...]
    passes: float


def acdc(
    trials: Trials,
    whole: Shape,
    *,
    threshold: float,
    kinds: Sequence[str] = UNIT_KINDS,
    group: int = 16,
    scores: UnitScores | None = None,
    cls_only: bool = True,
) -> AcdcResult:
    """Automatic circuit discovery (Conmy et al., 2023, algorithm 1) with units in the place of edges, removed for real.

    Receivers in reverse topological order (the last block first, in it the MLP before the attention), coarse to fine (a
    block, its MLP, that one's neurons, its attention, that one's heads); a unit goes when KL_new − KL_now < threshold.
    Nothing bounds the sum: with 0.01 a step, models of 6 blocks have ended at 0.07 to 0.11. `within_kl` bounds it.

    Deviations: a removed unit's keys are folded into those that stay, not set to a corrupted input's; a head is always
    left, since nothing but attention brings patches to the classifier.

    Args:
        trials: over the images of the search.
        whole: the model's sizes, those of `trials`.
        threshold: nats that a removal may add.
        kinds: of units that may go.
        group: neurons in a unit.
        scores: of single neurons; with them those of like score in a block go together, else neighbours do.
        cls_only: multiplications are counted of a model that computes only CLS behind its last attention.

    Raises:
        WeightsmithError: a threshold of 0 or below, an unknown kind, none at all, a group below 1, another model's sizes,
            scores that lack a neuron.
    """
    _refuse(trials, whole, threshold, kinds, group)
    kept = Kept.everything(whole)
    spent = -trials.passes
    trials.advance(kept)
    kl = trials.kl(kept)
    rows: list[dict[str, Any]] = []
    receivers = list(_receivers(whole, kinds, group, scores))
    with progress("ACDC by steps", len(receivers)) as advance:
        for unit in receivers:
            smaller = kept.without(unit)
            if smaller != kept and any(smaller.heads):
                after = trials.kl(smaller)
                added = float(after.mean()) - float(kl.mean())
                row: dict[str, Any] = {
                    "unit": str(unit),
                    "kl_before": float(kl.mean()),
                    "kl_after": float(after.mean()),
                }
                if added < threshold:
                    trials.advance(smaller)
                    kept, kl = smaller, after
                row |= {"added": added, "taken": added < threshold}
                row |= {"macs": kept.shape(whole).macs(cls_only), "passes": trials.passes + spent}
                rows.append(row)
            advance(note=f"KL {float(kl.mean()):.4f}")
    return AcdcResult(kept, means(kl[:, None].numpy())[0], tuple(rows), trials.passes + spent)


def _refuse(trials: Trials, whole: Shape, threshold: float, kinds: Sequence[str], group: int) -> None:
    """What `acdc` cannot be asked."""
    if not (0 < threshold < math.inf):
        raise WeightsmithError(
            f"a threshold must be above 0 and finite, not {threshold:g}: give nats of KL that may change, 0.05 say"
        )
    if not kinds:
        raise WeightsmithError(f"no kind of unit may go: name some of {', '.join(UNIT_KINDS)}")
    whole.units("neurons", group)  # refuses a group below 1
    for kind in kinds:
        if kind not in UNIT_KINDS:
            raise WeightsmithError(f"there is no unit of kind {kind!r}: {did_you_mean(kind, UNIT_KINDS)}")
    if whole != trials.whole:
        raise WeightsmithError(
            "these trials are of a model of other sizes than the search: give it the shape of theirs"
        )


def _receivers(whole: Shape, kinds: Sequence[str], group: int, scores: UnitScores | None) -> Iterable[Unit]:
    """Units from the last block to the first, coarse to fine."""
    by_kind = {kind: whole.units(kind, group) for kind in kinds}
    if scores is not None and "neurons" in kinds:
        by_kind["neurons"] = _groups(whole, group, scores)
    for layer in reversed(range(len(whole.heads))):
        for kind in ("block", "mlp", "neurons", "attn", "head"):
            yield from (unit for unit in by_kind.get(kind, []) if unit.layer == layer)


def _groups(whole: Shape, group: int, scores: UnitScores) -> list[Unit]:
    """Groups of neurons of like score, those of each block from the least to the most."""
    worth = scores.by_unit()
    found: list[Unit] = []
    for layer in range(len(whole.neurons)):
        singles = [unit for unit in whole.units("neurons", 1) if unit.layer == layer]
        absent = next((unit for unit in singles if unit not in worth), None)
        if absent is not None:
            raise WeightsmithError(f"the scores say nothing of {absent}: score every neuron by itself")
        ranked = sorted(singles, key=lambda unit: worth[unit])
        for start in range(0, len(ranked), group):
            members = tuple(unit.members[0] for unit in ranked[start : start + group])
            found.append(Unit("neurons", layer, members))
    return found
