"""Values of named things below each other, a bar or a mark each, drawn as SVG in the page's own colours; each says its value.

For methods, layers and classes, whose names need the room that the ticks of an axis do not have.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from weightsmith.errors import WeightsmithError
from weightsmith.report.parts.axes import apart, ends_of, scaled, tick_label, ticks_of, told_bounds, told_number
from weightsmith.report.parts.blocks import Block
from weightsmith.report.parts.chart import COLOURS, MARKS, WIDTH, Line, Point, has_numbers, keys_of, more_told

TOP, BOTTOM = 8, 46
"""Room above and below the plot, in units of the SVG's view box."""

PITCH, LEADING = 18, 15
"""Between the values of a name, and between the lines of a name."""

_LETTERS, _LINES = 22, 3
_LETTER, _DIGIT = 8.2, 10.2
"""Letters in a line of a name, lines of it, and about the width of a letter, and of one of a value, where they are largest."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars(Block):
    """Values beside names.

    Attributes:
        title: above it.
        names: of the rows, from top to bottom; row_title: what they are.
        value_title: of the axis, with units.
        lines: what each name has a value of; the x of a point is the place of its name, y its value.
        filled: whether a bar goes from nought to each value; a mark alone if not.
        chosen: what a ring means; "" where none is chosen. each: what the small circles are.
        percent: whether the values are shares, told in percent.
        value_range: ends of the axis; None fits it to what is drawn.
        has_table: whether the numbers stand below it once more, for those who do not see it.
    """

    kind: ClassVar[str] = "bars"

    title: str
    names: Sequence[str]
    row_title: str
    value_title: str
    lines: Sequence[Line]
    filled: bool = False
    chosen: str = ""
    each: str = "single values"
    percent: bool = False
    value_range: tuple[float, float] | None = None
    has_table: bool = True

    def __post_init__(self) -> None:
        if not has_numbers(self.lines):
            raise WeightsmithError(f"there is nothing to draw: no value of {self.title!r} is a number")

    @cached_property
    def labels(self) -> list[list[str]]:
        """The names in lines; the values say a name that is cut in full."""
        return [_lines_of(name) for name in self.names]

    @cached_property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plot."""
        widest = max((_width(line) for lines in self.labels for line in lines), default=0)
        values = [self._values(point)[0] for line in self.lines for point in line.points if math.isfinite(point.y)]
        right = WIDTH - round(max(map(len, values)) * _DIGIT) - 12  # there stand the values
        return round(min(widest, _LETTERS + 2) * _LETTER) + 14, TOP, right, self.edges[-1]

    @property
    def view(self) -> str:
        """The SVG's view box."""
        return f"0 0 {WIDTH} {self.edges[-1] + BOTTOM:g}"

    @cached_property
    def edges(self) -> list[float]:
        """Where rows begin, and where the last one ends."""
        found = [float(TOP)]
        for label in self.labels:
            found.append(found[-1] + max(PITCH * len(self.lines), LEADING * len(label)) + 6)
        return found

    @cached_property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and label of the ticks of the axis."""
        spots = apart(ticks_of(*self._ends, "linear"), self._at, 44)
        return [(self._at(spot), tick_label(spot, spots, self.percent)) for spot in spots]

    @cached_property
    def nought(self) -> float | None:
        """Where nought lies, None where it is not within the axis."""
        low, high = self._ends
        return self._at(0.0) if low <= 0 <= high else None

    @cached_property
    def rows(self) -> list[BarRow]:
        """What the template draws, a row a name."""
        found = []
        for place, (name, label) in enumerate(zip(self.names, self.labels, strict=True)):
            middle = (self.edges[place] + self.edges[place + 1]) / 2
            spots = [
                self._spot(name, line, point, look, middle + PITCH * (look - (len(self.lines) - 1) / 2))
                for look, line in enumerate(self.lines)
                for point in line.points
                if point.x == place
            ]
            heights = [round(middle + LEADING * (i - (len(label) - 1) / 2) + 4.5, 1) for i in range(len(label))]
            found.append(BarRow(list(zip(label, heights, strict=True)), [spot for spot in spots if spot is not None]))
        return found

    @cached_property
    def drawn(self) -> list[Key]:
        """The lines as a legend has them; a single one without a name needs none."""
        return [Key(line.name, self._look(look), self._sign(look)) for look, line in enumerate(self.lines)]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What rings and small circles mean, as far as there are any: kind and words."""
        return keys_of(self.lines, self.chosen, self.each)

    @property
    def heads(self) -> list[str]:
        """The columns of `table`."""
        return [self.row_title, *(["line"] if self._several else []), self.value_title, "interval"]

    @cached_property
    def table(self) -> list[tuple[str | bool, ...]]:
        """Name, line where there are several, value and interval, and whether chosen, for those who do not see the plot."""
        return [
            (name, *([line.name] if self._several else []), *self._values(point), point.chosen)
            for place, name in enumerate(self.names)
            for line in self.lines
            for point in line.points
            if point.x == place
        ]

    @property
    def _several(self) -> bool:
        return len(self.lines) > 1

    def _look(self, place: int) -> str:
        return f"c{place % COLOURS}"

    def _sign(self, place: int) -> str:
        return "M-5-5H5V5H-5Z" if self.filled else MARKS[place % len(MARKS)]

    def _spot(self, name: str, line: Line, point: Point, look: int, height: float) -> Bar | None:
        if not math.isfinite(point.y):
            return None
        ends = (point.low, point.high)
        bounds = None if any(map(math.isnan, ends)) else (self._at(point.low), self._at(point.high))
        value, interval = self._values(point)
        named = ", ".join(dict.fromkeys(part for part in (name, line.name, point.told) if part))
        told = (f"{named}: " if named else "") + f"{self.value_title} {value}" + (f" ({interval})" if interval else "")
        return Bar(
            x=self._at(point.y),
            y=round(height, 1),
            nought=self._at(0.0),
            look=self._look(look),
            mark="" if self.filled else self._sign(look),
            bounds=bounds,
            each=[self._at(value) for value in point.each if math.isfinite(value)],
            value=value,
            told=told + more_told(point, self.chosen, self.each, self.percent),
            chosen=point.chosen,
        )

    def _values(self, point: Point) -> tuple[str, str]:
        return told_number(point.y, self.percent), told_bounds(point.low, point.high, self.percent)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        if self.value_range is not None:
            return self.value_range
        points = [point for line in self.lines for point in line.points if math.isfinite(point.y)]
        values = [value for p in points for value in (p.y, p.low, p.high, *p.each) if math.isfinite(value)]
        low, high = ends_of([*values, 0.0] if self.filled else values, "linear", 0.03)
        if self.filled:  # a bar begins where the plot does, unless some go the other way
            low, high = (0.0 if min(values) >= 0 else low), (0.0 if max(values) <= 0 else high)
        return low, high if high > low else low + 1.0

    def _at(self, value: float) -> float:
        left, _, right, _ = self.frame
        low, high = self._ends
        return round(scaled(min(max(value, low), high), self._ends, "linear", left, right), 1)


@dataclass(frozen=True)
class Bar:
    """A value as it is drawn: its place, that of nought, colour and mark, interval, single values, text, and what it says."""

    x: float
    y: float
    nought: float
    look: str
    mark: str
    bounds: tuple[float, float] | None
    each: list[float]
    value: str
    told: str
    chosen: bool


@dataclass(frozen=True)
class BarRow:
    """A name with what stands beside it: the lines of the name and their heights, and its values."""

    label: list[tuple[str, float]]
    spots: list[Bar]


@dataclass(frozen=True)
class Key:
    """A line as the legend has it; it has no path and no dash."""

    name: str
    look: str
    mark: str
    path: str = ""
    dash: str = ""


def _lines_of(name: str) -> list[str]:
    """A name in few short lines, cut where it is longer."""
    name = " ".join(name.split())
    wide = _width(name) / max(len(name), 1)
    letters = max(int(_LETTERS / max(wide, 1.0)), 4)
    return textwrap.wrap(name, letters, max_lines=_LINES, placeholder="…") or [""]


def _width(text: str) -> int:
    """In letters; those of Chinese and Japanese are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
