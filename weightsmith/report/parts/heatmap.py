"""A map of values as a table: a row a layer, a column a head; every cell says its value to pointer, keyboard and ear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from weightsmith.report.parts.blocks import Block

STRONG = 0.7
"""Share of the scale from which a cell's ground is so strong that its text takes the other ink."""

MOST_COLUMNS_WITH_TEXT = 16
"""Columns up to which the cells show their numbers."""


@dataclass(frozen=True)
class Cell:
    """One value.

    Attributes:
        told: what pointer, keyboard and ear get, after the names of row and column.
        share: of the scale, -1 to 1: the colour.
        text: what is seen in it; "" for cells too small for words.
        marked: has an outline.
    """

    told: str
    share: float = 0.0
    text: str = ""
    marked: bool = False

    @property
    def alpha(self) -> str:
        """The strength of the colour, as the style sheet takes it."""
        return f"{min(abs(self.share), 1.0):.2f}" if math.isfinite(self.share) else "0"

    @property
    def classes(self) -> str:
        """Sign, ink and mark, as the style sheet calls them."""
        names = ["p" if self.share >= 0 else "q"]
        if abs(self.share) > STRONG:
            names.append("s")
        if self.marked:
            names.append("m")
        return " ".join(names)


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatMap(Block):
    """Values over rows and columns.

    Attributes:
        title: above the table.
        rows, columns: names; row_title, column_title: what they are.
        cells: a cell, or None where nothing was measured, for each row and column.
        empty: what a cell that is None says.
        ends: words at the two ends of the colour scale, and `signed` whether its middle is zero.
        mark: what an outline means; "" where there are none.
        notes: sentences about what is not shown.
    """

    kind: ClassVar[str] = "heatmap"

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    cells: Sequence[Sequence[Cell | None]]
    empty: str = "not measured"
    ends: tuple[str, str] = ("", "")
    signed: bool = True
    mark: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def has_text(self) -> bool:
        """Whether cells have words in them."""
        return any(cell is not None and cell.text for line in self.cells for cell in line)

    @property
    def upright(self) -> bool:
        """Whether the names of columns must stand upright to fit."""
        return max((len(name) for name in self.columns), default=0) > (6 if self.has_text else 2)


def decimals_for(limit: float) -> int:
    """Decimals that give the scale's end two digits or three."""
    return min(max(2 - math.floor(math.log10(limit)), 0), 5) if limit > 0 and math.isfinite(limit) else 2


def signed(value: float, decimals: int) -> str:
    """With a sign, a real minus, and no minus nought."""
    if not math.isfinite(value):
        return "n/a"
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")
