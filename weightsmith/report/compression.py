"""The figures and tables of `weightsmith compress`: what stays of each model, and how faithful parts of it are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError
from weightsmith.report.evaluation_page import short_count
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, short, style
from weightsmith.report.words import Row, number

MOST_SHOWN = 12
"""Models that the figure of what stays can show."""

LEAST_SHOWN = -1.2
"""Faithfulness below which a curve leaves the figure: a circuit that does worse than none tells no more by how much."""

_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "black")
_GONE = "#E6EAEE"


def kept_figure(models: Sequence[tuple[str, Kept]], whole: Shape) -> Figure:
    """Of each model a map of its heads, block by block, dark where a head stays, and the widths of its MLPs.

    Args:
        models: name, and what stays of the heads and neurons of `whole`; the first `MOST_SHOWN` are drawn.

    Raises:
        WeightsmithError: no models.
    """
    if not models:
        raise WeightsmithError("there is nothing to show: no smaller model was made")
    drawn, layers = models[:MOST_SHOWN], len(whole.heads)
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with style():
        figure = Figure(figsize=(6.2 * columns, rows * max(1.5, 0.2 * layers + 0.9)), layout="constrained")
        panels = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 1.4] * columns)
        for place in range(rows * columns):
            heads, widths = panels[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
            if place >= len(drawn):
                heads.set_axis_off()
                widths.set_axis_off()
                continue
            name, kept = drawn[place]
            _heads(heads, kept, whole)
            _widths(widths, kept, whole)
            heads.set_title(short(name, 34), loc="left")
            if place + columns >= len(drawn):
                heads.set_xlabel("head")
                widths.set_xlabel("MLP neurons; pale: of the whole model")
    return figure


def _heads(axes: Axes, kept: Kept, whole: Shape) -> None:
    layers, most = len(whole.heads), max(whole.heads)
    cells = [[math.nan] * most for _ in range(layers)]
    for layer, there in enumerate(whole.heads):
        for head in range(there):
            cells[layer][head] = float(head in kept.heads[layer])
    axes.imshow(cells, cmap=ListedColormap([_GONE, BLUE]), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for edge in range(most):
        axes.axvline(edge - 0.5, color="white", linewidth=1.2)
    for edge in range(layers):
        axes.axhline(edge - 0.5, color="white", linewidth=1.2)
    axes.set_ylabel("block")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)


def _widths(axes: Axes, kept: Kept, whole: Shape) -> None:
    layers = range(len(whole.neurons))
    axes.barh(layers, whole.neurons, color=_GONE, height=0.8)
    axes.barh(layers, [len(members) for members in kept.neurons], color=BLUE, height=0.8)
    axes.set_ylim(len(whole.neurons) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(length=0, labelsize=8)


def faithfulness_figure(curves: Sequence[Row]) -> Figure:
    """How much of the whole model's behaviour a circuit has, against the share of units or edges that it keeps.

    Args:
        curves: rows with name, fraction, value, low, high, and where known cpr and cmd, the same in all rows of a name.

    Raises:
        WeightsmithError: no rows.
    """
    if not curves:
        raise WeightsmithError("there is nothing to show: no circuit was measured")
    names = list(dict.fromkeys(str(row["name"]) for row in curves))
    with style():
        figure = Figure(figsize=(7.5, 5.2), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            rows = sorted((row for row in curves if row["name"] == name), key=lambda row: number(row["fraction"]))
            fractions, values, low, high = (
                [number(row.get(key, "")) for row in rows] for key in ("fraction", "value", "low", "high")
            )
            colour = _COLOURS[place % len(_COLOURS)]
            axes.plot(fractions, values, marker="o", markersize=4, color=colour, label=legend(name, rows[0]))
            axes.fill_between(fractions, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.axhline(0, color=GREY, linewidth=0.9)
        smallest = min((number(row["fraction"]) for row in curves if number(row["fraction"]) > 0), default=0.001)
        axes.set_xscale("symlog", linthresh=smallest)
        ticks = [0, *(tick for tick in (0.001, 0.01, 0.1, 1) if tick >= smallest)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-0.2 * smallest, 1.15)
        axes.set_ylim(max(axes.get_ylim()[0], LEAST_SHOWN), None)
        axes.set_xlabel("share that is kept")
        axes.set_ylabel("faithfulness")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def compressed_table(rows: Sequence[Row]) -> Table:
    """The rows of `compress_metrics.csv` for the terminal; the file has all."""
    table = Table(title="Smaller models; KL to the baseline in nats", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True, min_width=max((len(str(row["model"])) for row in rows), default=5))
    for name in ("MACs", "parameters", "KL, judging", "KL, held out"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        apart = [number(row[name]) for name in ("kl", "kl_held_out")]
        shares = [_share(row["macs_kept"]), _share(row["parameters_kept"])]
        table.add_row(Text(str(row["model"])), *shares, *("" if math.isnan(one) else _few(one) for one in apart))
    return table


def shown_models(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of `compress_metrics.csv` as a page has them."""
    return [
        {
            "model": row["model"],
            "goal": row["asked"],
            "heads": row["heads"],
            "MLP neurons": row["neurons"],
            "blocks": row["blocks"],
            "MACs kept": _share(row["macs_kept"]),
            "parameters kept": _share(row["parameters_kept"]),
            "bytes on disk": short_count(number(row["bytes_on_disk"])),
            "KL on judging images, nats": _nats(row, "kl"),
            "KL on held-out images, nats": _nats(row, "kl_held_out"),
            "held out / judging": "" if math.isnan(number(row["kl_ratio"])) else f"{number(row['kl_ratio']):.2f}",
            "budget holds on held-out images": row["budget_holds"],
            "epochs of recovery": row["recovered_epochs"],
        }
        for row in rows
    ]


def agreement_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of `agreement.csv`, one a method and kind of unit, as a table with a line a method; exact removal is left out."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["method"] != "exact":
            line = found.setdefault(str(row["method"]), {"score": row["method"]})
            value = number(row["spearman"])
            line[f"{row['kind']} ({row['units']})"] = "n/a" if math.isnan(value) else f"{value:.3f}"
    return list(found.values())


def legend(name: str, row: Row) -> str:
    """The name of a faithfulness curve with its areas, where they are known."""
    areas = [f"{key.upper()} {number(row.get(key, '')):.3f}" for key in ("cpr", "cmd")]
    return name if "nan" in " ".join(areas) else f"{name} ({', '.join(areas)})"


def _share(value: object) -> str:
    share = number(value)
    return "n/a" if math.isnan(share) else f"{100 * share:.1f}%"


def _nats(row: Row, name: str) -> str:
    value, low, high = (number(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    return _few(value) if math.isnan(low) else f"{_few(value)} ({_few(low)} to {_few(high)})"


def _few(nats: float) -> str:
    """Two digits that say something, however small it is."""
    return f"{nats:.4f}" if nats == 0 or nats >= 0.001 else f"{nats:.1e}"
