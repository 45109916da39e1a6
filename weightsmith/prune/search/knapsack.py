"""One width for each sublayer, so that what is lost is least and the time stays under a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 4000
"""Steps that the target time is cut into; times are rounded up to whole steps, so that the sum never exceeds it."""


@dataclass(frozen=True)
class Choice:
    """One way to have a sublayer: what it loses, and the time it takes."""

    loss: float
    time: float


def allocate(groups: Sequence[Sequence[Choice]], budget: float) -> list[int] | None:
    """One choice of every group, by place: the smallest sum of losses whose times add up to at most the budget.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11) by dynamic programming over times.

    Returns:
        None where even the fastest choices take longer.
    """
    if budget <= 0:
        return None
    step = budget / BINS
    best = np.zeros(BINS + 1)
    taken: list[np.ndarray] = []
    for group in groups:
        table = np.full((len(group), BINS + 1), np.inf)
        for place, choice in enumerate(group):
            need = int(np.ceil(choice.time / step - 1e-9))
            if need <= BINS:
                table[place, need:] = best[: BINS + 1 - need] + choice.loss
        taken.append(table.argmin(0))
        best = table.min(0)
    if not np.isfinite(best[BINS]):
        return None
    places, left = [], BINS
    for group, choices in zip(reversed(groups), reversed(taken), strict=True):
        place = int(choices[left])
        places.append(place)
        left -= int(np.ceil(group[place].time / step - 1e-9))
    return places[::-1]
