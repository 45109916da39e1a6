"""Which of several classifiers to use: the Pareto front of accuracy and time, and a choice for each purpose with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.measure import Interval

Difference = Callable[[str, str], Interval]
"""(a, b) → a measure of a against b: accuracy of a − that of b, or time of a divided by that of b, paired."""


@dataclass(frozen=True)
class Candidate:
    """A classifier as a choice looks at it.

    Attributes:
        accuracy: share; milliseconds: of one batch.
    """

    name: str
    accuracy: Interval
    milliseconds: Interval

    @property
    def efficiency(self) -> Interval:
        """Accuracy in percent a millisecond; its bounds hold the worst and the best of both intervals, so they are wide."""
        right, time = self.accuracy, self.milliseconds
        return Interval(
            100 * right.value / time.value, 100 * right.low / time.high, 100 * right.high / time.low, right.n
        )


@dataclass(frozen=True)
class Recommendation:
    """Attributes:
    purpose: "best accuracy", "fastest within the tolerance" or "best efficiency".
    model: the name of the choice; why: in sentences.
    uncertain: whether the difference to the nearest rival may be noise.
    """

    purpose: str
    model: str
    why: str
    uncertain: bool

    def __str__(self) -> str:
        return f"{self.purpose.capitalize()}: {self.why}"


def pareto_front(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Names of those that no other equals in accuracy and time and beats in one of them, fastest first; ties stay."""

    def beaten(one: Candidate) -> bool:
        mine = (one.accuracy.value, -one.milliseconds.value)
        theirs = ((other.accuracy.value, -other.milliseconds.value) for other in candidates)
        return any(their[0] >= mine[0] and their[1] >= mine[1] and their != mine for their in theirs)

    front = [one for one in candidates if not beaten(one)]
    return tuple(one.name for one in sorted(front, key=lambda one: (one.milliseconds.value, one.name)))


def recommend(
    candidates: Sequence[Candidate], baseline: str, tolerance: float, change: Difference, ratio: Difference
) -> tuple[Recommendation, Recommendation, Recommendation]:
    """The most accurate, the fastest that is accurate enough, and the most efficient; of equals the faster, then the first.

    Args:
        baseline: the name of the one that the others are measured against.
        tolerance: percentage points of accuracy that a faster model may lose against it.
        change: accuracy of one − that of another; ratio: time of one / that of another.

    Raises:
        WeightsmithError: no candidate is the baseline.
    """
    by_name = {one.name: one for one in candidates}
    if baseline not in by_name:
        raise WeightsmithError(f"the baseline {baseline} is none of the models: {did_you_mean(baseline, by_name)}")
    return (
        _most_accurate(candidates, change),
        _fastest(candidates, by_name[baseline], tolerance, change, ratio),
        _most_efficient(candidates, by_name[baseline], tolerance, change),
    )


def _most_accurate(candidates: Sequence[Candidate], change: Difference) -> Recommendation:
    first, *others = sorted(candidates, key=lambda one: (-one.accuracy.value, one.milliseconds.value))
    why = f"{first.name} gets {_share(first.accuracy)} right"
    if not others:
        return Recommendation("best accuracy", first.name, f"{why}; there is no other model.", False)
    second = others[0]
    lead = change(first.name, second.name)
    uncertain = _holds(lead, 0.0)
    why += f", {_points(lead, signed=False)} more than {second.name}, the next."
    if uncertain:
        why += " That interval holds 0, so the difference may be noise"
        faster = [
            one
            for one in others
            if one.milliseconds.value < first.milliseconds.value and _holds(change(first.name, one.name), 0.0)
        ]
        quickest = min(faster, key=lambda one: one.milliseconds.value, default=None)
        why += f": {quickest.name} is faster and may be as accurate." if quickest else "."
    return Recommendation("best accuracy", first.name, why, uncertain)


def _fastest(
    candidates: Sequence[Candidate], baseline: Candidate, tolerance: float, change: Difference, ratio: Difference
) -> Recommendation:
    # In percentage points and rounded, so that 0.91 − 0.9 is 1 point.
    enough = [one for one in candidates if _lost(one, baseline) <= tolerance]
    first, *others = sorted(enough, key=lambda one: (one.milliseconds.value, -one.accuracy.value))
    purpose = "fastest within the tolerance"
    limit = f"{tolerance:g} point{'s' * (tolerance != 1)}"
    if first.name == baseline.name:
        why = f"No model is faster than the baseline {first.name} and at most {limit} less accurate"
        if not others:
            return Recommendation(purpose, first.name, f"{why}.", False)
        rival = ratio(others[0].name, first.name)
        uncertain = _holds(rival, 1.0)
        why += f"; {others[0].name} takes {_times(rival)} its time."
        why += " That interval holds 1, so the difference may be noise." if uncertain else ""
        return Recommendation(purpose, first.name, why, uncertain)
    lead, price = ratio(first.name, baseline.name), change(first.name, baseline.name)
    why = f"{first.name} takes {_times(lead)} the time of {baseline.name}, the baseline, with {_points(price)} of accuracy."
    uncertain = _holds(lead, 1.0)
    if uncertain:
        why += " The interval of the times holds 1, so it may be no faster."
    if 100 * price.low < -tolerance:
        why += f" A loss of more than {limit} cannot be ruled out."
        uncertain = True
    rivals = [one for one in others if one.name != baseline.name]
    if rivals and _holds(ratio(rivals[0].name, first.name), 1.0):
        why += f" {rivals[0].name} may be as fast: {_times(ratio(rivals[0].name, first.name))} its time."
        uncertain = True
    return Recommendation(purpose, first.name, why, uncertain)


def _most_efficient(
    candidates: Sequence[Candidate], baseline: Candidate, tolerance: float, change: Difference
) -> Recommendation:
    first, *others = sorted(candidates, key=lambda one: (-one.efficiency.value, one.milliseconds.value))
    score = first.efficiency
    why = f"{first.name} gets {score.value:.3g}% right a millisecond"
    uncertain = False
    if others:
        second = others[0]
        why += f", and {second.name}, the next, {second.efficiency.value:.3g}%"
        uncertain = not (score.low > second.efficiency.high)  # bounds that are unknown rule nothing out
        why += "; their intervals overlap, so the difference may be noise." if uncertain else "."
    else:
        why += "; there is no other model."
    if _lost(first, baseline) > tolerance:
        lost = change(first.name, baseline.name)
        why += f" This score rewards speed however little is right: against the baseline it has {_points(lost)} of accuracy."
    return Recommendation("best efficiency", first.name, why, uncertain)


def _lost(one: Candidate, baseline: Candidate) -> float:
    """Percentage points of accuracy below the baseline."""
    return round(100 * (baseline.accuracy.value - one.accuracy.value), 9)


def _holds(found: Interval, value: float) -> bool:
    """Whether a value is not ruled out."""
    return not (found.low > value or found.high < value)


def _share(found: Interval) -> str:
    if math.isnan(found.low):
        return f"{100 * found.value:.1f}%"
    return f"{100 * found.value:.1f}% ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _points(found: Interval, *, signed: bool = True) -> str:
    style = "+.2f" if signed else ".2f"
    value, low, high = (format(round(100 * one, 2) + 0.0, style) for one in (found.value, found.low, found.high))
    return f"{value} points" if math.isnan(found.low) else f"{value} points ({low} to {high})"


def _times(found: Interval) -> str:
    if math.isnan(found.low):
        return f"{found.value:.3f} times"
    return f"{found.value:.3f} times ({found.low:.3f} to {found.high:.3f})"
