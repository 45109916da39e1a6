"""The plain blocks of a page: sentences, a figure, a table, and tabs of other blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from weightsmith.report.words import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 40
"""Rows of a table that a page shows."""

_FEW_LETTERS = 24
"""Letters up to which a cell is not broken into lines."""

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|[-+]?nan|[-+]?inf")
_MEASURED = re.compile(r"[-+]?\d[\d.,]*([eE][-+]?\d+)?%?( points)?( \([-+\d.e]+ to [-+\d.e]+\))?")
"""A number as a page has it, with its interval; a column of such goes to the right and is not broken into lines."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Something that a page shows.

    Attributes:
        kind: the template beside this file that renders it.
        caption: what stands below it.
    """

    kind: ClassVar[str]

    caption: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Words(Block):
    """Sentences, a paragraph each."""

    kind: ClassVar[str] = "words"

    sentences: Sequence[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture(Block):
    """A figure as an image on a white ground.

    Attributes:
        figure: drawn when the page is made.
        alt: what it says, for those who cannot see it; empty takes its titles, else the caption.
        pixels_per_inch: below this width its text could not be read, so it scrolls.
    """

    kind: ClassVar[str] = "picture"

    figure: Figure
    alt: str = ""
    pixels_per_inch: int = 64

    @cached_property
    def item(self) -> dict[str, object]:
        """What the template needs."""
        from weightsmith.report.plots import embedded

        return embedded(self.figure, self.alt or alternative_text(self.caption, self.figure), self.pixels_per_inch)


def alternative_text(caption: str, figure: Figure) -> str:
    """What the figure says of itself, for the caption stands below in any case."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    told = list(dict.fromkeys(" ".join(title.split()) for title in titles if title.strip()))
    return "; ".join(told) or caption


@dataclass(frozen=True, eq=False, kw_only=True)
class TableBlock(Block):
    """The first rows of a table, its columns those that hold something.

    Attributes:
        title: above it.
        rows: of a CSV file, or alike.
        file: the CSV file that has all of them, if the page should name it.
    """

    kind: ClassVar[str] = "table"

    title: str
    rows: Sequence[Row]
    file: str = ""

    @cached_property
    def table(self) -> dict[str, Any]:
        """What the template needs."""
        return table_of(self.title, self.rows, self.file)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tabs(Block):
    """Panels of which one is seen at a time; without the script, and on paper, all of them, one after another.

    Attributes:
        label: what they are tabs of.
        panels: title and blocks.
    """

    kind: ClassVar[str] = "tabs"

    label: str
    panels: Sequence[tuple[str, Sequence[Block]]] = field(default_factory=tuple)


def table_of(title: str, rows: Sequence[Row], file: str = "") -> dict[str, Any]:
    """The first rows as text, without columns that hold nothing, and how each column stands."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows[:MOST_ROWS]]) for name in names}
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    left = ""
    if len(rows) > MOST_ROWS:
        left = f"The first {MOST_ROWS} of {len(rows):,} rows; {file or 'the CSV file of this table'} has all of them."
    return {
        "title": title,
        "names": list(columns),
        "looks": [_look(texts) for texts in columns.values()],
        "lines": list(zip(*columns.values(), strict=True)),
        "left": left,
    }


def _look(texts: Sequence[str]) -> str:
    """How a column stands: "n", on the right, numbers and the name that differences are to; "w", unbroken, a few words."""
    said = [text for text in texts if text not in ("", "n/a", "baseline")]
    if all(_NUMBER.fullmatch(text) or _MEASURED.fullmatch(text) for text in said) and (said or "n/a" in texts):
        return "n"
    return "w" if max(map(len, said), default=0) <= _FEW_LETTERS else ""


def _column(values: Sequence[object]) -> list[str]:
    """Cells as text. Numbers that are not whole, be they text, have four digits of the largest, all as many decimals."""
    texts = ["" if value is None else str(value) for value in values]
    real = [
        isinstance(value, float) or (_NUMBER.fullmatch(text) is not None and ("." in text or "n" in text))
        for value, text in zip(values, texts, strict=True)
    ]
    sizes = [abs(float(text)) for text, is_real in zip(texts, real, strict=True) if is_real]
    largest = max((size for size in sizes if math.isfinite(size)), default=0.0)
    decimals = max(3 - math.floor(math.log10(largest)), 0) if largest else 0
    fixed = decimals <= 6 and largest < 1e6
    for place, value in enumerate(values):
        if isinstance(value, bool):
            texts[place] = "yes" if value else "no"
        elif real[place]:
            size = float(texts[place])
            shown = f"{round(size, decimals) + 0.0:.{decimals}f}" if fixed else f"{size:.3e}"  # no minus nought
            texts[place] = "n/a" if math.isnan(size) else shown
    return texts
