"""Axes of plots: where they end, where a value lies on them, their ticks, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

Axis = Literal["linear", "log2", "log10", "log10 from 0"]
"""The last is logarithmic from its smallest number above nought on; nought lies a decade to the left of it."""

_BEFORE_NOUGHT = 0.15
"""Room to the left of nought, in decades."""


def fits(value: float, axis: Axis) -> bool:
    """Whether the axis has a place for the value."""
    lowest = {"linear": -math.inf, "log10 from 0": 0.0}.get(axis)
    return math.isfinite(value) and (value > 0 if lowest is None else value >= lowest)


def ends_of(values: Sequence[float], axis: Axis, room: float) -> tuple[float, float]:
    """Ends of an axis, with some room; an axis of one value has room as well.

    Of "log10 from 0" the first is the smallest number above nought.
    """
    low, high = min(values), max(values)
    if axis == "linear":
        between = (high - low) or abs(high) * 0.1 or 1.0
        return low - room * between, high + room * between
    if axis == "log10 from 0":
        low = min((value for value in values if value > 0), default=1.0)
        high = max(high, low)
        return low, high * 10.0 ** (room * (math.log10(high / low) + 1.0))
    base = 2.0 if axis == "log2" else 10.0
    between = math.log(high / low, base) or 1.0
    return low * base ** (-room * between - 0.02), high * base ** (room * between + 0.02)


def scaled(value: float, ends: tuple[float, float], axis: Axis, first: float, last: float) -> float:
    """Where a value lies between two places, which are those of the ends."""
    low, high = ends
    if axis == "log10 from 0":
        decades = 1.0 + math.log10(value / low) if value > low else value / low
        share = (decades + _BEFORE_NOUGHT) / (1.0 + math.log10(high / low) + _BEFORE_NOUGHT)
        return first + share * (last - first)
    if axis != "linear":
        value, low, high = (math.log(max(number, 1e-300)) for number in (value, low, high))
    return first + (value - low) / (high - low) * (last - first)


def ticks_of(low: float, high: float, axis: Axis) -> list[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator  # not before something is drawn

    if axis == "linear":
        locator: MaxNLocator | LogLocator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    elif axis == "log2":
        locator = LogLocator(base=2, numticks=9)
    else:
        locator = LogLocator(base=10, subs=(1, 2, 5), numticks=9)
    found = [float(spot) for spot in locator.tick_values(low, high) if low <= spot <= high]
    return [0.0, *found] if axis == "log10 from 0" else found


def apart(spots: Sequence[float], place: Callable[[float], float], least: float) -> list[float]:
    """The ticks whose labels do not run into each other."""
    found: list[float] = []
    for spot in sorted(spots):
        if not found or place(spot) - place(found[-1]) >= least:
            found.append(spot)
    return found


def tick_label(value: float, among: Sequence[float], percent: bool) -> str:
    factor = 100 if percent else 1
    steps = [abs(b - a) * factor for a, b in pairwise(among)]
    least = min((step for step in steps if step > 0), default=abs(value * factor) or 1.0)
    decimals = min(max(0, -math.floor(math.log10(least) + 1e-9)), 6)
    if abs(value * factor) >= 1e5 or decimals == 6:
        return f"{value * factor:.3g}"
    # A quarter needs two decimals though its size is of the first.
    text = f"{round(value * factor, decimals + 1) + 0.0:.{decimals + 1}f}"
    text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−") + ("%" if percent else "")


def told_number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "n/a"
    if percent:
        return f"{round(100 * value, 1) + 0.0:.1f}%".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def told_bounds(low: float, high: float, percent: bool) -> str:
    """The ends of an interval, "" where there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{told_number(low, percent)} to {told_number(high, percent)}"
