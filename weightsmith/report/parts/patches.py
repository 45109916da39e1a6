"""Values of patches drawn over their images; each patch says its value to pointer, keyboard and ear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weightsmith.report.parts.blocks import Block
from weightsmith.report.parts.heatmap import decimals_for, signed

MOST_PATCHES = 12_000
"""Patches that a page can hold; images beyond that are left out."""


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Values over one image.

    Attributes:
        title: which of the image's maps it is.
        values: (rows, columns), NaN where nothing was measured.
        outlined: patches with an outline, counted along the rows.
    """

    title: str
    values: np.ndarray
    outlined: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class PatchRow:
    """An image and its maps.

    Attributes:
        name: of the image.
        uri: the image; small: whether it is enlarged pixel by pixel; ratio: its width / height.
    """

    name: str
    uri: str
    small: bool
    ratio: float
    maps: Sequence[PatchMap]


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches(Block):
    """Images with their maps, all on one scale about zero.

    Attributes:
        title: above them; unit: of the values.
        outline: what an outline means; "" where there are none.
        file: the CSV file with every number.
    """

    kind: ClassVar[str] = "patches"

    title: str
    unit: str
    images: Sequence[PatchRow]
    outline: str = ""
    file: str = ""

    @property
    def limit(self) -> float:
        """The largest number, of either sign."""
        sizes = [
            np.abs(one.values[np.isfinite(one.values)]).max(initial=0.0) for row in self.images for one in row.maps
        ]
        return float(max(sizes, default=0.0)) or 1.0

    @property
    def ends(self) -> tuple[str, str]:
        """The ends of the scale."""
        decimals = decimals_for(self.limit)
        return signed(-self.limit, decimals), signed(self.limit, decimals)

    @property
    def shown(self) -> list[PatchRow]:
        """The images that there is room for."""
        room = MOST_PATCHES
        found: list[PatchRow] = []
        for row in self.images:
            room -= sum(one.values.size for one in row.maps)
            if room < 0 and found:
                break
            found.append(row)
        return found

    def cells(self, one: PatchMap) -> list[tuple[int, int, str, str, str]]:
        """Column, row, classes, opacity and told value of every patch."""
        limit, decimals = self.limit, decimals_for(self.limit) + 1
        found = []
        for (row, column), value in np.ndenumerate(one.values):
            classes = "p" if value >= 0 else "q"
            if row * one.values.shape[1] + column in one.outlined:
                classes += " m"
            strength = 0.0 if math.isnan(value) else min(abs(float(value)) / limit, 1.0)
            told = signed(float(value), decimals) if math.isfinite(value) else "not measured"
            found.append((column, row, classes, f"{0.92 * strength:.2f}", told))
        return found
