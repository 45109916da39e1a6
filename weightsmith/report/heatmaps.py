"""Heat maps in panels on one colour scale.

Its colours run from vermilion (below zero) over white to blue (above), symmetric about zero, and can be told apart with
any common colour blindness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from weightsmith.effects import Effects
from weightsmith.report.plots import GREY, effects_title, style
from weightsmith.report.scales import Rows, colour_bar, headed, symmetric, unit

MOST_CELLS_WITH_TEXT = 12
"""Rows and columns up to which a heat map shows its numbers."""

_BLANK = "#E3E6EA"
_DIVERGING: Colormap = LinearSegmentedColormap.from_list(
    "weightsmith_diverging", ["#7A2E00", "#D55E00", "#F6C39B", "#FFFFFF", "#9CC9E8", "#2F7FBC", "#0A3E70"]
).with_extremes(bad=_BLANK)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """An axis of a heat map.

    Attributes:
        field: of the rows; values: what it holds, in order; labels: what to call them.
        title: of the axis.
        kept: places whose labels are thinned last.
    """

    field: str
    values: Sequence[Any]
    labels: Sequence[str]
    title: str
    kept: Sequence[int] = ()

    def ticks(self, most: int) -> tuple[list[int], list[str]]:
        """Places and labels, at most about `most` of them, evenly spaced but for those kept."""
        step = -(-len(self.labels) // max(most, 1))
        chosen = list(self.kept[::step])
        chosen += [p for p in range(0, len(self.labels), step) if all(abs(p - other) >= step for other in chosen)]
        return sorted(chosen), [self.labels[place] for place in sorted(chosen)]


def counted(field: str, rows: Rows) -> Axis:
    """The axis of a field of whole numbers."""
    values = sorted({row[field] for row in rows})
    return Axis(field, values, [str(value) for value in values], f"{field}, counted from 0")


def heat_maps(rows: Rows, down: Axis, across: Axis, effects: Effects, *, with_text: bool = True) -> Figure:
    """A panel for each value of the rows' `panel`, one colour scale for all; a dot where a row is `marked`.

    The numbers stand in the cells `with_text` and as long as there is room for them.
    """
    dots: dict[str, list[tuple[int, int, float]]] = {}
    at_row, at_column = ({value: place for place, value in enumerate(axis.values)} for axis in (down, across))
    names = dict.fromkeys(row["panel"] for row in rows)
    grids = {name: np.full((len(at_row), len(at_column)), np.nan) for name in names}
    for row in rows:
        y, x = at_row[row[down.field]], at_column[row[across.field]]
        grids[row["panel"]][y, x] = row["mean"]
        if row.get("marked"):
            dots.setdefault(row["panel"], []).append((x, y, row["mean"]))
    text = with_text and max(len(at_row), len(at_column)) <= MOST_CELLS_WITH_TEXT
    tall = min(max(7.5, 0.025 * len(at_row)), 11.0)
    wide = 5.5 if len(grids) < 3 else 4.3  # three fit beside each other
    cell = (0.52, 0.34) if text else (min(max(0.13, wide / len(at_column)), 0.36), min(0.26, tall / len(at_row)))
    width, height = max(len(at_column) * cell[0], 1.6), max(len(at_row) * cell[1], 1.1)
    columns = min(len(grids), max(1, int(14 // width)), 3)
    lines = -(-len(grids) // columns)
    label_room = 0.4 + 0.07 * max(len(label) for label in down.labels)
    size = (columns * (width + 0.25) + label_room + 1.1, lines * (height + 0.75) + 1.0)
    norm = symmetric([row["mean"] for row in rows])
    with style():
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat[len(grids) :]:
            axes.set_axis_off()
        for place, (axes, (name, cells)) in enumerate(zip(panels.flat, grids.items(), strict=False)):
            axes.imshow(cells, cmap=_DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
            axes.set_title(name, fontsize=10)
            axes.set_xticks(*across.ticks(int(width / 0.24)), fontsize=8)
            axes.set_yticks(*down.ticks(int(height / 0.145)), fontsize=8)
            axes.tick_params(length=2)
            axes.set_xlabel(across.title, fontsize=9)
            if place % columns == 0:
                axes.set_ylabel(down.title, fontsize=9)
            else:
                axes.set_yticklabels([])
            for spine in axes.spines.values():
                spine.set_visible(True)
            if text:
                _numbers(axes, cells, norm)
            if name in dots:
                xs, ys, means = zip(*dots[name], strict=True)
                corner = (0.38, -0.34) if text else (0.0, 0.0)  # clear of the number
                inks = [_ink(mean, norm) for mean in means]
                area = min(max((0.22 * 72 * min(cell)) ** 2, 1.5), 9)
                axes.scatter(np.add(xs, corner[0]), np.add(ys, corner[1]), s=area, color=inks, linewidths=0)
        note = _digits(norm)[2] if text else ""
        label = f"mean effect ({unit(effects)})" + (f"; cells {note}" if note else "")
        colour_bar(figure, panels[0, 0].images[0], panels, label, aspect=22, fraction=0.05)
        headed(figure, effects_title(effects), max(size[0], 5.8))
        handles: list[Any] = []
        if dots:
            dot = Line2D([], [], color="black", marker="o", markersize=3, linestyle="none")
            dot.set_label("95% interval excludes 0")
            handles.append(dot)
        if any(np.isnan(cells).any() for cells in grids.values()):
            handles.append(Patch(facecolor=_BLANK, edgecolor=GREY, linewidth=0.5, label="not there or not measured"))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _numbers(axes: Axes, cells: np.ndarray, norm: Normalize) -> None:
    factor, decimals, _ = _digits(norm)
    for (row, column), value in np.ndenumerate(cells):
        if math.isfinite(value):
            text = f"{round(value * factor, decimals) + 0.0:.{decimals}f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=_ink(value, norm))


def _ink(value: float, norm: Normalize) -> str:
    """The colour of what stands on a cell of `_DIVERGING`."""
    return "white" if abs(value) > 0.58 * float(norm.vmax or 1.0) else "black"


def _digits(norm: Normalize) -> tuple[float, int, str]:
    """A factor and decimals that give the scale's end two or three digits, and a note that tells the factor."""
    power = math.floor(math.log10(float(norm.vmax or 1.0)))
    if -2 <= power <= 2:
        return 1.0, 2 - power if power >= 0 else 1 - power, ""
    return 10.0**-power, 2, f"× 10{str(power).translate(_SUPERSCRIPTS)}"
