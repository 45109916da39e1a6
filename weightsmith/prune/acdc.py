"""ACDC over the units of a vision transformer: what can go before the model's answers change by more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from scipy.stats import t
from torch import Tensor

from weightsmith.circuit import UNIT_KINDS, Kept, Shape, Unit
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.measure.intervals import Interval, means
from weightsmith.progress import Advance, progress
from weightsmith.prune.scores import unit_scores
from weightsmith.prune.trials import Trials
from weightsmith.scores import UnitScores

RULES = ("budget", "step")
"""`budget`: the divergence of the smaller model stays below the threshold. `step`: what each removal adds to it does."""

_COARSE = ("block", "attn", "mlp")
_COARSE_SHARE = 0.25
"""Of the budget, up to which whole sublayers and blocks go: what they free is coarse, and finer units need the rest."""
_PATIENCE = 4
"""Units in a row that do not fit, after which dearer ones are not tried."""


@dataclass(frozen=True, eq=False)
class AcdcResult:
    """What a search kept.

    Attributes:
        kept: heads and neurons that stay.
        kl: KL(whole ‖ smaller) over the images of the search, nats, mean with its 95% interval.
        rows: one a trial, in order: rule, unit, units (how many went at once), kl_before, kl_after, bound (what was compared),
            removed, macs (of an image, after it), passes (so far).
        passes: forward-equivalents over the images of the search, beyond the trials' first pass, those of the scores included
            where they were taken here.
        checked: the same KL over the images of `check`, None where there were none.
    """

    kept: Kept
    kl: Interval
    rows: tuple[dict[str, Any], ...]
    passes: float
    checked: Interval | None = None


def acdc(
    trials: Trials,
    whole: Shape,
    *,
    threshold: float,
    rule: Literal["budget", "step"] = "budget",
    kinds: Sequence[str] = UNIT_KINDS,
    group: int = 16,
    scores: UnitScores | None = None,
    upper: bool = True,
    cls_only: bool = True,
    check: Trials | None = None,
) -> AcdcResult:
    """Automatic circuit discovery (Conmy et al., 2023, algorithm 1) with units in the place of edges, removed for real.

    - "step" is the paper's rule: receivers in reverse topological order (the last block first, in it the MLP before the
      attention), coarse to fine (a block, its MLP, that one's neurons, its attention, that one's heads); a unit goes when
      KL_new − KL_now < threshold. Nothing bounds the sum: with 0.01 a step, models of 6 blocks have ended beyond 0.1.
    - "budget": a unit goes while the KL of the smaller model as a whole stays at or below the threshold. First blocks and
      sublayers, up to a quarter of the budget; then heads and neurons, those first that are scored least for each
      multiplication saved. Units are tried together and, where they do not fit, by halves, which ends as one by one would
      if removing more never lowered the divergence; it stops when four in a row do not fit.

    Deviations: a removed unit's keys are folded into those that stay, not set to a corrupted input's; a head is always
    left, since nothing but attention brings patches to the classifier.

    A model is surer of images that it was trained on, and a budget kept on these is exceeded on others: search over
    images that it has not learned from. A search also picks what its own images happen to allow; `check` undoes that.

    Args:
        trials: over the images of the search.
        whole: the model's sizes, those of `trials`.
        threshold: nats, by step or in all.
        kinds: of units that may go.
        group: neurons in a unit; where single neurons are scored, those of like score in a block go together.
        scores: larger matters more; None takes "gauss-newton" over the images of the search. "step" needs none.
        upper: "budget" compares the one-sided 95% upper bound of the mean KL (Student's t) instead of the mean, so that the
            budget holds on images that the search has not seen.
        cls_only: multiplications are counted of a model that computes only CLS in its last block.
        check: trials of the same model over other images; what "budget" removed last is given back until the bound holds
            over these too.

    Raises:
        WeightsmithError: a threshold of 0 or below, an unknown rule or kind, none at all, a group below 1, another model's
            sizes, scores that lack a unit, a bound over fewer than two images, a check of the "step" rule.
    """
    _refuse(trials, whole, threshold, rule, kinds, group, upper, check)
    search = _Search(trials, threshold, rule, upper, cls_only)
    if rule == "step":
        receivers = list(_receivers(whole, kinds, group, scores))
        with progress("ACDC by steps", len(receivers)) as advance:
            for unit in receivers:
                search.attempt([unit], threshold)
                advance(note=f"KL {float(search.kl.mean()):.4f}")
        return search.result()
    if scores is None:
        units = list(chain.from_iterable(whole.units(kind, 1) for kind in kinds))
        scores = unit_scores(trials.model, trials.images, units, statistics=trials.statistics)
        search.spent += float(scores.info["passes"])
    with progress("ACDC under a budget", None) as advance:
        worth = scores.by_unit()
        coarse = [unit for kind in kinds if kind in _COARSE for unit in whole.units(kind)]
        for unit in search.cheapest({unit: _of(worth, unit) for unit in coarse}):
            search.attempt([unit], _COARSE_SHARE * threshold)
            advance(note=f"KL {float(search.kl.mean()):.4f}")
        fine = {unit: _of(worth, unit) for unit in whole.units("head")} if "head" in kinds else {}
        fine |= _groups(whole, group, scores) if "neurons" in kinds else {}
        search.misses = 0
        search.by_halves(search.cheapest(fine), advance)
    return search.result() if check is None else search.checked(check)


def _refuse(
    trials: Trials,
    whole: Shape,
    threshold: float,
    rule: str,
    kinds: Sequence[str],
    group: int,
    upper: bool,
    check: Trials | None,
) -> None:
    """What `acdc` cannot be asked."""
    if not (0 < threshold < math.inf):
        raise WeightsmithError(
            f"--acdc-thresholds must be above 0 and finite, not {threshold:g}: give nats of KL that may change, 0.05 say"
        )
    if rule not in RULES:
        raise WeightsmithError(f"there is no rule {rule!r} to remove by: {did_you_mean(rule, RULES)}")
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
    if check is not None and (rule == "step" or check.whole != whole):
        raise WeightsmithError("a check is of a budget and of the same model: leave it out, or search with rule=budget")
    if rule == "budget" and upper and min(len(one.images) for one in (trials, check or trials)) < 2:
        raise WeightsmithError("one image bounds no mean: search over more images, or with upper=False")


class _Search:
    """What is kept so far, and how it came to that."""

    def __init__(self, trials: Trials, threshold: float, rule: str, upper: bool, cls_only: bool) -> None:
        self.trials, self.threshold, self.rule, self.upper, self.cls_only = trials, threshold, rule, upper, cls_only
        self.kept = Kept.everything(trials.whole)
        self.spent = -trials.passes
        trials.advance(self.kept)
        self.kl = trials.kl(self.kept)
        self.rows: list[dict[str, Any]] = []
        self.misses = 0
        self.trail = [(self.kept, self.kl)]

    def attempt(self, units: Sequence[Unit], limit: float) -> bool:
        """Remove these units together if that stays within the limit; whether they are gone."""
        smaller = self.kept.without(*units)
        if smaller == self.kept:
            return True
        if not any(smaller.heads):
            return False
        kl = self.trials.kl(smaller)
        before, after = float(self.kl.mean()), float(kl.mean())
        bound = after - before if self.rule == "step" else self._bound(kl)
        fits = bound < limit if self.rule == "step" else bound <= limit
        if fits:
            self.trials.advance(smaller)
            self.kept, self.kl = smaller, kl
            self.trail.append((smaller, kl))
        self.rows.append(
            {
                "rule": self.rule,
                "unit": str(units[0]) if len(units) == 1 else f"{units[0]} to {units[-1]}",
                "units": len(units),
                "kl_before": before,
                "kl_after": after,
                "bound": bound,
                "removed": fits,
                "macs": self.kept.shape(self.trials.whole).macs(self.cls_only),
                "passes": self.trials.passes + self.spent,
            }
        )
        return fits

    def cheapest(self, worth: dict[Unit, float]) -> list[Unit]:
        """Units that are there, least score for each multiplication saved first."""
        saved = {unit: self.trials.saved(unit, self.kept, self.cls_only) for unit in worth}
        there = [unit for unit in worth if saved[unit] > 0]
        return sorted(there, key=lambda unit: worth[unit] / saved[unit])

    def by_halves(self, units: Sequence[Unit], advance: Advance, too_many: bool = False) -> bool:
        """Remove what fits of the units, in their order; whether all went.

        Args:
            too_many: that they do not fit all together is known.
        """
        if not units or self.misses >= _PATIENCE:
            return not units
        if not too_many:
            gone = self.attempt(units, self.threshold)
            advance(note=f"KL {float(self.kl.mean()):.4f}")
            if gone:
                self.misses = 0
                return True
        if len(units) == 1:
            self.misses += 1
            return False
        half = len(units) // 2
        first = self.by_halves(units[:half], advance)
        # With the first half gone, the second alone is what did not fit.
        second = self.by_halves(units[half:], advance, too_many=first)
        return first and second

    def result(self) -> AcdcResult:
        interval = means(self.kl[:, None].numpy())[0]
        return AcdcResult(self.kept, interval, tuple(self.rows), self.trials.passes + self.spent)

    def checked(self, check: Trials) -> AcdcResult:
        """The result, going back along the removals to the last model whose bound over other images holds."""
        holds, breaks = 0, len(self.trail)  # the whole model diverges nowhere
        place = breaks - 1
        while breaks - holds > 1:
            if self._bound(check.kl(self.trail[place][0])) <= self.threshold:
                holds = place
            else:
                breaks = place
            place = (holds + breaks) // 2
        self.kept, self.kl = self.trail[holds]
        return replace(self.result(), checked=means(check.kl(self.kept)[:, None].numpy())[0])

    def _bound(self, kl: Tensor) -> float:
        if not self.upper:
            return float(kl.mean())
        return float(kl.mean() + t.ppf(0.95, len(kl) - 1) * kl.std() / math.sqrt(len(kl)))


def _receivers(whole: Shape, kinds: Sequence[str], group: int, scores: UnitScores | None) -> Iterable[Unit]:
    """Units from the last block to the first, coarse to fine."""
    neurons = list(_groups(whole, group, scores)) if scores is not None and "neurons" in kinds else None
    by_kind = {kind: whole.units(kind, group) for kind in kinds} | ({} if neurons is None else {"neurons": neurons})
    for layer in reversed(range(len(whole.heads))):
        for kind in ("block", "mlp", "neurons", "attn", "head"):
            yield from (unit for unit in by_kind.get(kind, []) if unit.layer == layer)


def _groups(whole: Shape, group: int, scores: UnitScores) -> dict[Unit, float]:
    """Groups of neurons and their scores: of like score where each neuron has one of its own, else neighbours."""
    worth = scores.by_unit()
    singles = whole.units("neurons", 1)
    if not all(unit in worth for unit in singles):
        return {unit: _of(worth, unit) for unit in whole.units("neurons", group)}
    found: dict[Unit, float] = {}
    for layer in range(len(whole.neurons)):
        ranked = sorted((unit for unit in singles if unit.layer == layer), key=lambda unit: worth[unit])
        for start in range(0, len(ranked), group):
            several = ranked[start : start + group]
            members = tuple(unit.members[0] for unit in several)
            found[Unit("neurons", layer, members)] = sum(worth[unit] for unit in several)
    return found


def _of(worth: dict[Unit, float], unit: Unit) -> float:
    if unit not in worth:
        raise WeightsmithError(f"the scores say nothing of {unit}: score every unit of the kinds that may go")
    return worth[unit]
