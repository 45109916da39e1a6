"""95% intervals for what is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom, binomtest, t

_DRAWN_AT_ONCE = 2**23
"""Cells of resampled tables that are held at a time."""


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95% interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)
"""A share of no samples at all."""


def proportion(hits: int, n: int) -> Interval:
    """A share of n independent samples with Wilson's interval; `NOTHING` when n is 0."""
    if n == 0:
        return NOTHING
    bounds = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return Interval(hits / n, float(bounds.low), float(bounds.high), int(n))


def bootstrap(
    cells: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int = 2000,
    seed: int = 0,
    width: int = 1,
) -> list[Interval]:
    """Percentile bootstrap of statistics of a table of counts.

    Resampling n samples with replacement is a multinomial draw of the table's cells, so no sample is touched again.

    Args:
        cells: (…) counts of what can happen to a sample, a confusion matrix for instance.
        statistic: maps (resamples, …) tables to (resamples, k) values.
        width: numbers that the statistic makes of a table, where they are many: fewer tables are then drawn at once.

    Returns:
        k intervals; values that are undefined (NaN) in a resample are left out of it.
    """
    n = int(cells.sum())
    if n == 0:
        return [NOTHING]
    shares = (cells / n).reshape(-1)
    random = np.random.default_rng(seed)
    at_once = max(
        1, _DRAWN_AT_ONCE // max(cells.size, width)
    )  # a stream of draws is the same in however many pieces it comes
    pieces = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    point = statistic(cells[None])[0]
    values = np.concatenate(
        [statistic(random.multinomial(n, shares, size=count).reshape(count, *cells.shape)) for count in pieces]
    )
    intervals: list[Interval] = []
    for k, value in enumerate(point):
        column = values[:, k][np.isfinite(values[:, k])]
        low, high = np.quantile(column, [0.025, 0.975]) if len(column) else (np.nan, np.nan)
        intervals.append(Interval(float(value), float(low), float(high), n))
    return intervals


def means(values: np.ndarray, combine: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Interval]:
    """Mean of each column of a table, with an interval that resamples its rows.

    For samples each of which gave several values that are not independent, such as a request with its paraphrases: the
    row is the sample, and its parts stay together.

    Args:
        values: (rows, k); NaN where a row has no such value. A mean is over the rows that have one.
        combine: maps (…, k) means to (…), a measure made of them.

    Returns:
        k intervals, and one of the combined measure where it is wanted; n is the number of rows that have the value (of
        the combined measure: in the column where they are fewest). A single row has no bounds.
    """
    known = ~np.isnan(values)
    counts = known.sum(0)
    rows, times = np.unique(np.concatenate([known, np.nan_to_num(values)], 1), axis=0, return_counts=True)
    there, entries = rows[:, : values.shape[1]], rows[:, values.shape[1] :]

    def statistic(tables: np.ndarray) -> np.ndarray:
        weight, total = tables @ there, tables @ entries
        columns = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
        return columns if combine is None else np.concatenate([columns, combine(columns)[:, None]], 1)

    numbers = [int(n) for n in counts] + ([] if combine is None else [int(counts.min())])
    if len(values) == 0:
        return [NOTHING for _ in numbers]
    return [
        replace(interval, n=n) if n > 1 else Interval(interval.value, math.nan, math.nan, n)
        for interval, n in zip(bootstrap(times, statistic), numbers, strict=True)
    ]


def shares(values: np.ndarray, combine: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Interval]:
    """`means` of values between 0 and 1, with bounds also where all rows agree.

    Where every row is 0, or every row is 1, resampling finds no spread at all. Wilson's interval of so many rows stands
    there instead: values between 0 and 1 are all ones at most as often as coins of the same mean are all heads.
    The combined measure, which must grow with each mean, then gets its bounds from theirs if all columns are so.
    """
    found = means(values, combine)
    columns = values.shape[1]
    agreed = [interval.n > 0 and interval.value in (0.0, 1.0) for interval in found[:columns]]
    for place, same in enumerate(agreed):
        if same:
            found[place] = proportion(round(found[place].value * found[place].n), found[place].n)
    if combine is not None and all(agreed):
        low, high = combine(np.array([[part.low for part in found[:columns]], [part.high for part in found[:columns]]]))
        found[columns] = replace(found[columns], low=float(low), high=float(high))
    return found


def of_runs(values: Sequence[float]) -> Interval:
    """Mean over repeated runs with Student's t interval, which is honest for a few of them; NaN values are left out.

    A single run has no bounds.
    """
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]), math.nan, math.nan, 1) if n else NOTHING
    centre, half = float(known.mean()), float(t.ppf(0.975, n - 1) * known.std(ddof=1) / math.sqrt(n))
    return Interval(centre, centre - half, centre + half, n)


def median(values: Sequence[float] | np.ndarray) -> Interval:
    """Median with its distribution-free interval: the order statistics that hold it with at least 95% probability.

    For times, whose tail of slow rounds would rule a mean. Fewer than six values have no bounds. What drifts from value
    to value makes the interval too narrow.
    """
    known = np.sort(np.asarray(values, dtype=np.float64))
    n = len(known)
    if n == 0:
        return NOTHING
    rank = int(binom.ppf(0.025, n, 0.5))  # so many of n values lie below the median with at most 2.5% probability
    low, high = (known[rank - 1], known[n - rank]) if rank > 0 else (math.nan, math.nan)
    return Interval(float(np.median(known)), float(low), float(high), n)
