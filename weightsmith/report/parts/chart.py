"""Lines and points over two axes, drawn as SVG in the page's own colours; every point says its values.

For curves over a coefficient, forgetting curves, frontiers and Pareto plots, with the chosen points marked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from weightsmith.errors import WeightsmithError
from weightsmith.report.parts.axes import (
    Axis,
    apart,
    ends_of,
    fits,
    scaled,
    tick_label,
    ticks_of,
    told_bounds,
    told_number,
)
from weightsmith.report.parts.blocks import Block
from weightsmith.report.words import Row, number

WIDTH, HEIGHT = 520, 310
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 50
"""Room around the plot, in the same units: those of the SVG's view box."""

COLOURS = 7
"""Colours that lines take in turn; the style sheet has them, light and dark."""

MOST_POINTS = 1_500
"""Points that one chart draws; longer lines are thinned."""

MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",  # a disc
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.8L4.6 3.4H-4.6Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M0 4.8L4.6-3.4H-4.6Z",
)
DASHES = ("", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Point:
    """One point of a line.

    Attributes:
        x, y: where it is; low, high: bounds of the interval of y, NaN where there is none.
        x_low, x_high: of that of x, where x was measured as well.
        told: its name, before the numbers; chosen: has a ring around it.
        each: the values that it is the mean of, drawn small.
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    told: str = ""
    chosen: bool = False
    each: Sequence[float] = ()
    x_low: float = math.nan
    x_high: float = math.nan

    @classmethod
    def of(cls, row: Row, x: str, y: str, told: str = "", chosen: bool = False) -> Point:
        """Of the columns of a row: x, y, and what ends in _low and _high of both where it has them."""
        low, high, left, right = (number(row.get(f"{name}{end}", "")) for name in (y, x) for end in ("_low", "_high"))
        return cls(number(row[x]), number(row[y]), low, high, told, chosen, x_low=left, x_high=right)


@dataclass(frozen=True)
class Line:
    """Points that belong together.

    Attributes:
        name: in the legend.
        points: in their order.
        joined: whether a line goes through them; steps: in steps, as a Pareto front goes.
        quiet: grey, and without marks where a line goes through them; what other lines are seen against.
        look: which colour and mark; None counts on.
        dash: which dash.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    steps: bool = False
    quiet: bool = False
    look: int | None = None
    dash: int = 0


@dataclass(frozen=True)
class Level:
    """A value to see the lines against, drawn across; dash counts on from the first."""

    name: str
    y: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Chart(Block):
    """A plot.

    Attributes:
        title: above it.
        x_title, y_title: of the axes, with units.
        lines, levels: what is drawn.
        chosen: what a ring means; "" where none is chosen. each: what the small circles are.
        bounds: what the intervals are.
        x_axis, y_axis: scales; x_ticks: where ticks must be, empty to have them found.
        x_percent, y_percent: whether the values are shares, told in percent.
        y_range: ends of the axis; None fits it to what is drawn.
    """

    kind: ClassVar[str] = "chart"

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    levels: Sequence[Level] = field(default_factory=tuple)
    chosen: str = ""
    each: str = "single values"
    bounds: str = "interval"
    x_axis: Axis = "linear"
    y_axis: Axis = "linear"
    x_ticks: Sequence[float] = ()
    x_percent: bool = False
    y_percent: bool = False
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not any(self._finite(point) for line in self.lines for point in line.points):
            raise WeightsmithError(f"there is nothing to draw: no point of {self.title!r} is a number")

    @property
    def view(self) -> str:
        """The SVG's view box."""
        return f"0 0 {WIDTH} {HEIGHT}"

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the plot."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM

    @cached_property
    def drawn(self) -> list[Drawn]:
        """The lines as the template takes them."""
        count = -1
        found = []
        for line in self.lines:
            if line.look is None and not line.quiet:
                count += 1
            look = count if line.look is None else line.look
            found.append(self._drawn(line, look))
        return self._set_apart(found)

    def _set_apart(self, found: list[Drawn]) -> list[Drawn]:
        """Lines a little aside of each other where their intervals would cover each other: those with an x in common."""
        marked = [place for place, line in enumerate(self.lines) if not line.quiet and line.joined]
        places = [x for place in marked for x in {p.x for p in self.lines[place].points if not math.isnan(p.low)}]
        if len(places) == len(set(places)):
            return found
        step = min(4.0, 24.0 / len(marked))
        for rank, place in enumerate(marked):
            found[place] = found[place].moved(round(step * (rank - (len(marked) - 1) / 2), 1))
        return found

    @cached_property
    def across(self) -> list[tuple[str, float, str]]:
        """Name with its value, height and dash of each level that has a value."""
        return [
            (f"{level.name}: {told_number(level.y, self.y_percent)}", self._y(level.y), DASHES[1 + i % 3])
            for i, level in enumerate(self.levels)
            if math.isfinite(level.y)
        ]

    @cached_property
    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Place and label of the ticks of both axes."""
        (left, right), (low, high) = self._x_ends, self._y_ends
        x_ticks = [spot for spot in self.x_ticks if left <= spot <= right] or ticks_of(left, right, self.x_axis)
        x_ticks += [0.0] if self.x_axis == "log10 from 0" and 0.0 not in x_ticks else []
        y_ticks = ticks_of(low, high, self.y_axis)
        x_ticks = apart(x_ticks, self._x, 44)
        return (
            [(self._x(spot), tick_label(spot, x_ticks, self.x_percent)) for spot in x_ticks],
            [(self._y(spot), tick_label(spot, y_ticks, self.y_percent)) for spot in y_ticks],
        )

    @cached_property
    def table(self) -> list[tuple[str, str, str, str, bool]]:
        """Line, x, y, interval and whether chosen of every point: the numbers for those who do not see the plot."""
        return [
            (_called(line, point), *self._values(point), point.chosen)
            for line in self.lines
            if not line.quiet or not line.joined
            for point in _thinned(line.points)
        ]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What rings and small circles mean, as far as there are any: kind and words."""
        return keys_of(self.lines, self.chosen, self.each)

    def _drawn(self, line: Line, look: int) -> Drawn:
        points = [point for point in _thinned(line.points) if self._finite(point)]
        spots = [
            Spot(
                round(self._x(point.x), 1),
                round(self._y(point.y), 1),
                None if math.isnan(point.low) else round(self._y(point.low), 1),
                None if math.isnan(point.high) else round(self._y(point.high), 1),
                self._told(line, point),
                point.chosen,
                tuple(round(self._y(value), 1) for value in point.each if math.isfinite(value)),
                None if math.isnan(point.x_low) else round(self._x(point.x_low), 1),
                None if math.isnan(point.x_high) else round(self._x(point.x_high), 1),
            )
            for point in points
        ]
        return Drawn(
            name=line.name,
            look="quiet" if line.quiet else f"c{look % COLOURS}",
            mark="" if line.quiet and line.joined else MARKS[0 if line.quiet else look % len(MARKS)],
            dash=DASHES[line.dash % len(DASHES)],
            join=("H{x}V{y}" if line.steps else "L{x} {y}") if line.joined else "",
            spots=spots,
        )

    def _told(self, line: Line, point: Point) -> str:
        x, y, bounds = self._values(point)
        name = _called(line, point)
        told = f"{name}: {self.y_title} {y}" if name else f"{self.y_title} {y}"
        told += f" ({bounds})" if bounds else ""
        told += f" at {self.x_title} {x}"
        return told + more_told(point, self.chosen, self.each, self.y_percent)

    def _values(self, point: Point) -> tuple[str, str, str]:
        across = told_bounds(point.x_low, point.x_high, self.x_percent)
        x = told_number(point.x, self.x_percent) + (f" ({across})" if across else "")
        return x, told_number(point.y, self.y_percent), told_bounds(point.low, point.high, self.y_percent)

    def _finite(self, point: Point) -> bool:
        return fits(point.x, self.x_axis) and fits(point.y, self.y_axis)

    @cached_property
    def _x_ends(self) -> tuple[float, float]:
        values = [
            value
            for line in self.lines
            for p in line.points
            if self._finite(p)
            for value in (p.x, p.x_low, p.x_high)
            if fits(value, self.x_axis)
        ]
        return ends_of(values, self.x_axis, 0.04)

    @cached_property
    def _y_ends(self) -> tuple[float, float]:
        if self.y_range is not None:
            return self.y_range
        values = [
            value
            for line in self.lines
            for p in line.points
            if self._finite(p)
            for value in (p.y, p.low, p.high, *p.each)
            if fits(value, self.y_axis)
        ]
        return ends_of([*values, *(level.y for level in self.levels if math.isfinite(level.y))], self.y_axis, 0.06)

    def _x(self, value: float) -> float:
        left, _, right, _ = self.frame
        return scaled(value, self._x_ends, self.x_axis, left, right)

    def _y(self, value: float) -> float:
        _, top, _, bottom = self.frame
        low, high = self._y_ends
        return scaled(min(max(value, low), high), self._y_ends, self.y_axis, bottom, top)


@dataclass(frozen=True)
class Spot:
    """A point as it is drawn: its place, the ends of its interval, what it says, whether it has a ring, its circles, and the
    ends of the interval of x.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    told: str
    chosen: bool
    each: tuple[float, ...] = ()
    left: float | None = None
    right: float | None = None

    @property
    def bars(self) -> str:
        """The path of its intervals, from its place; "" without any."""
        up = "" if self.low is None or self.high is None else f"M0 {self.low - self.y:.1f}V{self.high - self.y:.1f}"
        if self.left is None or self.right is None:
            return up
        return f"{up}M{self.left - self.x:.1f} 0H{self.right - self.x:.1f}"


@dataclass(frozen=True)
class Drawn:
    """A line as it is drawn: colour class, mark and dash as SVG, how its spots are joined."""

    name: str
    look: str
    mark: str
    dash: str
    join: str
    spots: list[Spot]

    @property
    def path(self) -> str:
        """Through the spots; "" where they are not joined."""
        if not self.join or len(self.spots) < 2:
            return ""
        first, *others = self.spots
        return f"M{first.x} {first.y}" + "".join(self.join.format(x=spot.x, y=spot.y) for spot in others)

    def moved(self, aside: float) -> Drawn:
        """The line so many units to the right."""
        return replace(self, spots=[replace(spot, x=round(spot.x + aside, 1)) for spot in self.spots])


def chosen_at(line: Line, x: float) -> Line:
    """The line with a ring around its points at `x`."""
    return replace(line, points=[replace(point, chosen=point.x == x) for point in line.points])


def has_numbers(lines: Sequence[Line]) -> bool:
    """Whether there is anything to draw."""
    return any(math.isfinite(point.x) and math.isfinite(point.y) for line in lines for point in line.points)


def more_told(point: Point, chosen: str, each: str, percent: bool) -> str:
    """What a point says behind its value: what it is the mean of, and that it was chosen."""
    told = f"; {each} {', '.join(told_number(value, percent) for value in point.each)}" if point.each else ""
    return told + (f"; {chosen or 'chosen'}" if point.chosen else "")


def keys_of(lines: Sequence[Line], chosen: str, each: str) -> list[tuple[str, str]]:
    """Rows of a legend for the signs on points: kind of the sign, and what it means."""
    points = [point for line in lines for point in line.points]
    ringed = [("ring", chosen)] if chosen and any(point.chosen for point in points) else []
    return ringed + ([("each", each)] if any(point.each for point in points) else [])


def _called(line: Line, point: Point) -> str:
    return ", ".join(dict.fromkeys(part for part in (line.name, point.told) if part))


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_POINTS:
        return points
    step = -(-len(points) // MOST_POINTS)
    return [point for place, point in enumerate(points) if place % step == 0 or point.chosen]
