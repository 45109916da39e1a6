"""Exact order statistics of magnitudes that are too many to hold: histograms over the bits, sixteen at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from weightsmith.merge.storage.dtypes import Array

_DIGIT = 16
_VALUES = 1 << _DIGIT


def magnitudes(values: Array) -> Array:
    """The bits of |values| as unsigned integers, in whose order the magnitudes lie."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    bits: Array = values.view(unsigned) & unsigned.type((1 << (8 * values.dtype.itemsize - 1)) - 1)
    return bits


def largest(pieces: Callable[[], Iterator[Array]], ranks: Sequence[int], dtype: str = "f4") -> list[float]:
    """The magnitudes of given ranks, exactly.

    A pass over the bits' upper half finds the bin in which a rank lies, a second one over the lower half of what is in that
    bin finds the value; float64 takes four passes.

    Args:
        pieces: called once a pass, gives the values of type `dtype` piece by piece.
        ranks: 1 is the largest magnitude; 0 stands for infinity, above which nothing lies.
        dtype: "f4" or "f8".

    Returns:
        One magnitude a rank; a rank beyond the last value gives 0.
    """
    return together(lambda: ([piece] for piece in pieces()), [ranks], dtype)[0]


def together(
    pieces: Callable[[], Iterator[Sequence[Array]]], ranks: Sequence[Sequence[int]], dtype: str = "f4"
) -> list[list[float]]:
    """`largest` of several series at once, whose pieces come side by side.

    Args:
        pieces: each step gives a piece of every series.
        ranks: those of each series.
    """
    width = 8 * np.dtype(dtype).itemsize
    unsigned = np.dtype(f"u{width // 8}")
    found = [[_Search(rank) for rank in series] for series in ranks]
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts: list[dict[int, Array]] = [
            {search.prefix: np.zeros(_VALUES, np.int64) for search in series if search.open} for series in found
        ]
        for row in pieces():
            for series, values in zip(counts, row, strict=True):
                bits = magnitudes(values)
                upper = bits >> unsigned.type(shift)
                for prefix, histogram in series.items():
                    if shift == width - _DIGIT:
                        histogram += np.bincount(upper, minlength=_VALUES)
                    else:
                        inside = upper[(upper >> unsigned.type(_DIGIT)) == prefix]
                        histogram += np.bincount(inside & unsigned.type(_VALUES - 1), minlength=_VALUES)
        for searches, series in zip(found, counts, strict=True):
            for search in searches:
                if search.open:
                    search.narrow(series[search.prefix])
    return [[search.value(dtype) for search in series] for series in found]


class _Search:
    """Where one rank lies: the upper bits that are known of its value, and its rank among those that share them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.prefix = 0
        self.open = rank > 0

    def narrow(self, histogram: Array) -> None:
        above = np.cumsum(histogram[::-1])
        place = int(np.searchsorted(above, self.rank))
        if place == _VALUES:  # fewer values than the rank
            self.prefix, self.open, self.rank = 0, False, 1
            return
        digit = _VALUES - 1 - place
        self.rank -= int(above[place] - histogram[digit])
        self.prefix = (self.prefix << _DIGIT) | digit

    def value(self, dtype: str) -> float:
        if self.rank == 0:
            return float("inf")
        bits = np.array([self.prefix], np.dtype(f"u{np.dtype(dtype).itemsize}"))
        return float(bits.view(dtype)[0])
