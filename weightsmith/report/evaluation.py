"""The figure of `weightsmith evaluate`: six panels, of rows of `evaluation_metrics.csv`.

A model has one colour and one marker in all of them. Lines on points are 95% intervals, but for the times by batch size,
where they are quartiles: what single passes spread over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval
from weightsmith.report.comparison import share_axis
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, short, style
from weightsmith.report.words import Row, number

ByClass = Sequence[tuple[str, Mapping[str, Interval]]]
"""Class name, and each model's accuracy on its images."""

_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "black")
_MARKERS = "os^DvPX"
_BATCH_SIZES = (1, 8, 64)
_COSTS = {"parameters": ("o", "parameters"), "macs": ("s", "multiplications"), "bytes_on_disk": ("^", "bytes on disk")}
_NAME_LETTERS = 26


def evaluation_figure(rows: Sequence[Row], by_class: ByClass, baseline: str) -> Figure:
    """Accuracy, difference to the baseline, confidence, time, size, and accuracy against time with its Pareto front.

    Args:
        rows: of `evaluation_metrics.csv`, at least one.

    Raises:
        WeightsmithError: no rows.
    """
    if not rows:
        raise WeightsmithError("there is nothing to show: no model was evaluated")
    # Each marker meets each colour before a pair comes twice.
    looks = [(_COLOURS[i % 7], _MARKERS[(i + i // 7) % 7]) for i, _ in enumerate(rows)]
    height = max(3.1, 0.3 * len(rows) + 1.5)
    with style():
        figure = Figure(figsize=(15.5, 2 * height + 0.5 + 0.22 * math.ceil(len(rows) / 5)), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.12, h_pad=0.1)
        grid = figure.subplots(2, 3)
        _accuracy(grid[0, 0], rows, looks)
        _differences(grid[0, 1], rows, looks, by_class, baseline)
        _confidence(grid[0, 2], rows, looks)
        _times(grid[1, 0], rows, looks)
        _costs(grid[1, 1], rows, looks)
        _front(grid[1, 2], rows, looks)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", label=_called(row))
            for row, (colour, marker) in zip(rows, looks, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(rows), 5), frameon=False, fontsize=9)
    return figure


Looks = Sequence[tuple[str, str]]


def _accuracy(axes: Axes, rows: Sequence[Row], looks: Looks) -> None:
    _lines(axes, rows)
    for height, (row, (colour, marker)) in enumerate(zip(rows, looks, strict=True)):
        _point(axes, row, "accuracy", height, colour, marker)
        axes.plot(number(row["top5"]), height, marker=marker, markerfacecolor="white", color=colour, linestyle="none")
    share_axis(axes, "x")
    five = any(not math.isnan(number(row["top5"])) for row in rows)
    axes.set_title("Accuracy" + (": top-1 filled, top-5 open" if five else " (top-1)"), loc="left")


def _differences(axes: Axes, rows: Sequence[Row], looks: Looks, by_class: ByClass, baseline: str) -> None:
    _lines(axes, rows, named=False)
    axes.axvline(0, color=GREY, linewidth=0.9)
    for height, (row, (colour, marker)) in enumerate(zip(rows, looks, strict=True)):
        name = str(row["model"])
        apart = [shares[name].value - shares[baseline].value for _, shares in by_class]
        if name != baseline:
            axes.plot(apart, [height] * len(apart), "|", color=colour, alpha=0.55, markersize=9)
        _point(axes, row, "accuracy_change", height, colour, marker)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:+.3g}" if share else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("percentage points; strokes: single classes")
    axes.set_title("Accuracy − that of the baseline", loc="left")


def _confidence(axes: Axes, rows: Sequence[Row], looks: Looks) -> None:
    _lines(axes, rows, named=False)
    for height, (row, (colour, marker)) in enumerate(zip(rows, looks, strict=True)):
        right, wrong = number(row["confidence_when_right"]), number(row["confidence_when_wrong"])
        axes.plot([wrong, right], [height, height], color=colour, linewidth=1.2)
        axes.plot(right, height, marker=marker, color=colour, linestyle="none")
        axes.plot(wrong, height, marker=marker, markerfacecolor="white", color=colour, linestyle="none")
        axes.text(
            1.02,
            height,
            f"{100 * number(row['calibration_error']):.1f}%",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=GREY,
        )
    share_axis(axes, "x")
    axes.text(1.02, 1.02, "calibration\nerror", transform=axes.transAxes, fontsize=8, color=GREY, va="bottom")
    axes.set_title("Confidence: right filled, wrong open", loc="left")


def _times(axes: Axes, rows: Sequence[Row], looks: Looks) -> None:
    for place, (row, (colour, marker)) in enumerate(zip(rows, looks, strict=True)):
        apart = 2 ** (min(0.16, 1.6 / len(rows)) * (place - (len(rows) - 1) / 2))
        spots = [size * apart for size in _BATCH_SIZES]
        axes.vlines(
            spots,
            [number(row[f"ms_{size}_q1"]) for size in _BATCH_SIZES],
            [number(row[f"ms_{size}_q3"]) for size in _BATCH_SIZES],
            color=colour,
            linewidth=1.3,
        )
        axes.plot(spots, [number(row[f"ms_{size}"]) for size in _BATCH_SIZES], color=colour, marker=marker, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_BATCH_SIZES, [str(size) for size in _BATCH_SIZES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("milliseconds a batch")
    axes.set_title("Time: median and quartiles", loc="left")


def _costs(axes: Axes, rows: Sequence[Row], looks: Looks) -> None:
    _lines(axes, rows)
    base = next(row for row in rows if row["baseline"])
    for height, (row, (colour, _)) in enumerate(zip(rows, looks, strict=True)):
        for place, (name, (marker, _)) in enumerate(_COSTS.items()):
            share = number(row[name]) / number(base[name]) if number(base[name]) else math.nan
            axes.plot(share, height + 0.2 * (place - 1), marker=marker, color=colour, markersize=5, linestyle="none")
    axes.axvline(1, color=GREY, linewidth=0.9, zorder=0)
    axes.set_xlim(0, max(1.15, 1.08 * axes.dataLim.x1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    keys: list[Any] = [
        Line2D([], [], color=GREY, marker=marker, linestyle="none", markersize=5, label=title)
        for marker, title in _COSTS.values()
    ]
    axes.legend(
        handles=keys,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.1),
        ncols=3,
        frameon=False,
        fontsize=8,
        handletextpad=0,
    )
    axes.set_title("Size, of the baseline's", loc="left")


def _front(axes: Axes, rows: Sequence[Row], looks: Looks) -> None:
    front = sorted((number(row["ms_8"]), number(row["accuracy"])) for row in rows if row["pareto"])
    axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    for row, (colour, marker) in zip(rows, looks, strict=True):
        spot = number(row["ms_8"]), number(row["accuracy"])
        axes.hlines(spot[1], number(row["ms_8_low"]), number(row["ms_8_high"]), color=colour, linewidth=1.2)
        axes.vlines(spot[0], number(row["accuracy_low"]), number(row["accuracy_high"]), color=colour, linewidth=1.2)
        inside = colour if row["pareto"] else "white"
        axes.plot(*spot, marker=marker, color=colour, markerfacecolor=inside, linestyle="none", markersize=7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    axes.grid()
    axes.set_axisbelow(True)
    axes.margins(0.12)
    axes.set_xlabel("milliseconds a batch of 8")
    axes.set_ylabel("accuracy")
    axes.set_title("Accuracy against time; filled: Pareto front", loc="left")


def _lines(axes: Axes, rows: Sequence[Row], *, named: bool = True) -> None:
    """A line a model, the first on top."""
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_called(row) for row in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)


def _point(axes: Axes, row: Row, name: str, height: float, colour: str, marker: str) -> None:
    axes.hlines(height, number(row[f"{name}_low"]), number(row[f"{name}_high"]), color=colour, linewidth=1.4)
    axes.plot(number(row[name]), height, marker=marker, color=colour, linestyle="none")


def _called(row: Row) -> str:
    name = short(str(row["model"]), _NAME_LETTERS)
    return f"{name} (baseline)" if row["baseline"] and name != "baseline" else name
