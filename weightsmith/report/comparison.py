"""The figures and the table of `weightsmith compare`: methods side by side, over batch sizes and seeds.

All of them draw from rows of `baseline_comparison.csv`, a run each: method, batch_size, seed, efficacy, paraphrase,
neighbourhood, composite, seconds. Means are over seeds with Student's 95% interval, cut at 0 and 1; a single seed has no
interval, and none is drawn. Methods keep the order of the rows.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.measure.intervals import of_runs
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, style
from weightsmith.report.scales import Rows
from weightsmith.report.words import Row, number, percent

MEASURES = ("efficacy", "paraphrase", "neighbourhood", "composite")
"""The shares that are compared."""

TITLES = {
    "efficacy": "Efficacy: edits that took",
    "paraphrase": "Paraphrases: edits that hold when asked in another way",
    "neighbourhood": "Neighbourhood: other answers that stayed as they were",
    "composite": "Composite score: harmonic mean of efficacy, paraphrase and neighbourhood",
}
"""What each of them is."""

_FIGURES = {
    "efficacy_success_by_method": "efficacy",
    "paraphrase_success_by_method": "paraphrase",
    "neighborhood_specificity_by_method": "neighbourhood",
    "composite_score_by_method": "composite",
}
_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "black")
_MARKERS = "os^DvPX"
_SEED: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 3.2, "markerfacecolor": "white", "markeredgewidth": 0.8,
}  # fmt: skip
"""A single seed: a ring, which shows on its interval's line."""
_NAME_LETTERS = 22
_LINE = 0.22
"""Inches between the batch sizes of a method."""


def comparison_table(rows: Sequence[Row]) -> Rows:
    """One row a method and batch size: method, batch_size, seeds, each measure with its bounds, seconds with theirs.

    Raises:
        WeightsmithError: no rows, or a row without a batch size.
    """
    return [
        {
            "method": method,
            "batch_size": size,
            "seeds": len(found),
            **{name + end: value for name in MEASURES for end, value in _fields(over_seeds(found, name))},
            **{"seconds" + end: value for end, value in _fields(of_runs(_values(found, "seconds")))},
        }
        for (method, size), found in _cells(rows).items()
    ]


def comparison_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The five figures of a comparison under the names of their files.

    Raises:
        WeightsmithError: no rows, or a row without a batch size.
    """
    figures = {name: by_method(rows, measure) for name, measure in _FIGURES.items()}
    return figures | {"composite_score_by_batch_size": by_batch_size(rows)}


def by_method(rows: Sequence[Row], measure: str) -> Figure:
    """One of `MEASURES` for each method, a line for each batch size: mean, interval, and every seed as a dot.

    Raises:
        WeightsmithError: no rows, or a row without a batch size.
    """
    cells = _cells(rows)
    methods, sizes = _methods(cells), _sizes(cells)
    spread = np.linspace(0.82, 0, len(sizes))  # without viridis' yellow, which is faint on white
    shades = [to_hex(colour) for colour in colormaps["viridis"](spread)] if len(sizes) > 1 else [BLUE]
    looks = dict(zip(sizes, zip(shades, cycle(_MARKERS), strict=False), strict=False))
    labels = [textwrap.fill(method, _NAME_LETTERS) for method in methods]
    inches = [max(_LINE * len(sizes), 0.17 * (1 + label.count("\n"))) + 0.16 for label in labels]
    with style():
        figure = Figure(figsize=(7.6, sum(inches) + 1.15 + 0.35 * (len(sizes) > 1)), layout="constrained")
        axes = figure.subplots()
        edges = np.concatenate([[0.0], np.cumsum(inches)])
        for place, method in enumerate(methods):
            there = [size for size in sizes if (method, size) in cells]
            middle = (edges[place] + edges[place + 1]) / 2
            for line, size in enumerate(there):
                height = middle + _LINE * (line - (len(there) - 1) / 2)
                _dot_and_interval(axes, cells[method, size], measure, height, *looks[size])
        for edge in edges[1:-1]:
            axes.axhline(edge, color="#DDE2E8", linewidth=0.8)
        axes.set_ylim(edges[-1], 0)  # the first method on top
        axes.set_yticks((edges[:-1] + edges[1:]) / 2, labels)
        axes.tick_params(axis="y", length=0)
        share_axis(axes, "x")
        batches = f", {sizes[0]} edit{'s' * (sizes[0] > 1)} in a batch" if len(sizes) == 1 else ""
        axes.set_xlabel(f"{measure}, {_seeds(cells)}{batches}")
        axes.set_title(textwrap.fill(TITLES[measure], 78), loc="left")
        if len(sizes) > 1:
            handles = [
                Line2D(
                    [], [], color=looks[size][0], marker=looks[size][1], markersize=5.5, linewidth=1.4, label=f"{size}"
                )
                for size in sizes
            ]
            figure.legend(
                handles=handles,
                title="edits in a batch",
                loc="outside lower center",
                ncols=min(len(sizes), 8),
                frameon=False,
                fontsize=9,
                title_fontsize=9,
            )
    return figure


def by_batch_size(rows: Sequence[Row], measure: str = "composite") -> Figure:
    """One of `MEASURES` over the batch size, a line a method: mean, interval, and every seed as a dot.

    Methods stand a little apart at each size, so that their intervals do not cover each other.

    Raises:
        WeightsmithError: no rows, or a row without a batch size.
    """
    cells = _cells(rows)
    methods, sizes = _methods(cells), _sizes(cells)
    with style():
        figure = Figure(figsize=(8.6, max(4.0, 0.36 * len(methods) + 1.4)), layout="constrained")
        axes = figure.subplots()
        for place, (method, colour, marker) in enumerate(zip(methods, cycle(_COLOURS), cycle(_MARKERS), strict=False)):
            there = [size for size in sizes if (method, size) in cells]
            apart = 2 ** (0.07 * (place - (len(methods) - 1) / 2))
            found = [over_seeds(cells[method, size], measure) for size in there]
            spots = [size * apart for size in there]
            again = place >= len(_COLOURS)
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": (0, (5, 2)) if again else "-"}
            axes.vlines(spots, [one.low for one in found], [one.high for one in found], color=colour, linewidth=1.1)
            for spot, size in zip(spots, there, strict=True):
                values = _values(cells[method, size], measure)
                if len(values) > 1:
                    axes.plot([spot] * len(values), values, color=colour, **_SEED)
            label = textwrap.fill(method, _NAME_LETTERS)
            label += "" if any(one.n for one in found) else " (n/a)"
            axes.plot(
                spots,
                [one.value for one in found],
                markersize=6,
                markerfacecolor="white" if again else colour,
                linewidth=1.5,
                label=label,
                **look,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        room = 2 ** (0.07 * len(methods) / 2 + 0.3)
        axes.set_xlim(sizes[0] / room, sizes[-1] * room)
        share_axis(axes, "y")
        axes.set_xlabel("edits in a batch")
        axes.set_ylabel(f"{measure}, {_seeds(cells)}")
        axes.set_title(textwrap.fill(TITLES[measure], 88), loc="left")
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelspacing=0.7)
    return figure


def _dot_and_interval(axes: Axes, runs: Sequence[Row], measure: str, height: float, colour: str, marker: str) -> None:
    found = over_seeds(runs, measure)
    values = _values(runs, measure)
    axes.hlines(height, found.low, found.high, color=colour, linewidth=1.4)
    if len(values) > 1:
        axes.plot(values, [height] * len(values), color=colour, **_SEED)
    axes.plot([found.value], [height], linestyle="none", marker=marker, color=colour, markersize=6)
    axes.text(
        1.01, height, percent(found.value), transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=GREY
    )


def share_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """All of 0 to 100%: a part of it would make small differences look large."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}lim")(-0.02, 1.02)
    axis.set_ticks(np.linspace(0, 1, 6))
    axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis=which)
    axes.set_axisbelow(True)


def _seeds(cells: dict[tuple[str, int], list[Row]]) -> str:
    """What a point is, by the numbers of seeds that there are."""
    counts = sorted({len(runs) for runs in cells.values()})
    if counts == [1]:
        return "a single seed"
    some = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {some} seeds (rings) with 95% interval"


def over_seeds(runs: Sequence[Row], measure: str) -> Interval:
    """Mean of a share; its bounds stay within what a share can be."""
    found = of_runs(_values(runs, measure))
    # min and max would turn NaN bounds into 0 or 1
    return found if math.isnan(found.low) else replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _values(runs: Sequence[Row], name: str) -> list[float]:
    return [number(run.get(name, "")) for run in runs]


def _fields(found: Interval) -> list[tuple[str, float]]:
    return [("", found.value), ("_low", found.low), ("_high", found.high)]


def _cells(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The runs of each method and batch size: methods in the order of the rows, batch sizes from small to large."""
    if not rows:
        raise WeightsmithError("there is nothing to compare: no method has been run")
    if any(math.isnan(number(row["batch_size"])) for row in rows):
        raise WeightsmithError("a run in the comparison has no batch_size: give each the number of edits in a batch")
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (methods.index(str(row["method"])), number(row["batch_size"]))):
        cells.setdefault((str(row["method"]), int(number(row["batch_size"]))), []).append(row)
    return cells


def _methods(cells: dict[tuple[str, int], list[Row]]) -> list[str]:
    return list(dict.fromkeys(method for method, _ in cells))


def _sizes(cells: dict[tuple[str, int], list[Row]]) -> list[int]:
    return sorted({size for _, size in cells})
