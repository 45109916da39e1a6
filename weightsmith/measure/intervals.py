"""95% intervals for what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


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
    cells: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], resamples: int = 2000, seed: int = 0
) -> list[Interval]:
    """Percentile bootstrap of statistics of a table of counts.

    Resampling n samples with replacement is a multinomial draw of the table's cells, so no sample is touched again.

    Args:
        cells: (…) counts of what can happen to a sample, a confusion matrix for instance.
        statistic: maps (resamples, …) tables to (resamples, k) values.

    Returns:
        k intervals; values that are undefined (NaN) in a resample are left out of it.
    """
    n = int(cells.sum())
    if n == 0:
        return [NOTHING]
    shares = (cells / n).reshape(-1)
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples).reshape(resamples, *cells.shape)
    point = statistic(cells[None])[0]
    values = statistic(drawn)
    intervals: list[Interval] = []
    for k, value in enumerate(point):
        column = values[:, k][np.isfinite(values[:, k])]
        low, high = np.quantile(column, [0.025, 0.975]) if len(column) else (np.nan, np.nan)
        intervals.append(Interval(float(value), float(low), float(high), n))
    return intervals
