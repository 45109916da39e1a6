"""The curves of `weightsmith locate` over layers.

They draw from rows that the function beside them gives, so that a CSV file can hold exactly what a figure shows:
`layer_curve_rows` are the points of `layer_curves`. Intervals are those of `Effects.table`; a single sample has none, and
none is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, effects_title, style
from weightsmith.report.scales import Rows, headed, measures_of, unit
from weightsmith.report.words import where

MOST_POSITIONS = 6
"""Token positions up to which curves have a line for each; more of them belong in a map."""

_GREEN, _PURPLE, _SKY = "#009E73", "#CC79A7", "#56B4E9"
_KIND_COLOURS = {"resid.out": BLUE, "mlp.out": VERMILION, "attn.out": _GREEN, "resid.mid": _PURPLE}
_MORE_COLOURS = (ORANGE, _SKY, "black", _PURPLE, _GREEN, VERMILION, BLUE)
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "os^DvPX"
_MOST_LINES = 5


def layer_curve_rows(effects: Sequence[Effects]) -> Rows:
    """The points of `layer_curves`: kind, tokens, window, severed, measurement, layer, site, mean, low, high, n.

    Points of a line follow each other, by layer. `measurement` counts the `Effects` given, from 1.

    Raises:
        WeightsmithError: nothing that a curve can show, or metrics that cannot share an axis.
    """
    units = list(dict.fromkeys(unit(measured) for measured in effects))
    if len(units) > 1:
        raise WeightsmithError(f"effects in {units[0]} and in {units[1]} cannot share an axis: draw a figure each")
    rows: Rows = []
    for place, measured in enumerate(effects, 1):
        sites = [site for site in measured.sites if site.layer is not None and site.head is None]
        positions = {site.tokens for site in sites if isinstance(site.tokens, tuple)}
        if len(positions) > MOST_POSITIONS:
            sites = [site for site in sites if site.tokens not in positions]
        rows += [
            {
                "kind": site.kind,
                "tokens": where(site.tokens),
                "window": site.span,
                "severed": ", ".join(measured.info.get("sever", ())),
                "measurement": place,
                "layer": site.centre,
                **measures,
            }
            for site, measures in measures_of(measured, sites)
        ]
    if not rows:
        raise WeightsmithError(
            "there are no curves over layers to draw: measure whole layers, at named tokens or a few positions"
        )
    kinds, tokens = (list(dict.fromkeys(row[name] for row in rows)) for name in ("kind", "tokens"))

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        line = _line(row)  # single layers come right before the windows of their kind
        return (kinds.index(line.kind), tokens.index(line.tokens), *line[2:], row["layer"])

    return sorted(rows, key=order)


def layer_curves(effects: Sequence[Effects]) -> Figure:
    """Mean effect over layers, a line for each kind of site, window and tokens, with its 95% interval as a band.

    A window stands at its middle layer, dashed, in the same axes as the single layers of its kind: alone it would hide
    that no single layer has the effect. More than five lines get panels: by tokens, by kind, or by both.

    Raises:
        WeightsmithError: as `layer_curve_rows`.
    """
    rows = layer_curve_rows(effects)
    lines: dict[_Line, Rows] = {}
    for row in rows:
        lines.setdefault(_line(row), []).append(row)
    panels, by = _panels(list(lines))
    looks = _looks(list(lines), tokens_apart="tokens" in by)
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    height = -(-len(panels) // columns)  # rounded up
    layers = sorted({row["layer"] for row in rows})
    titles = list(dict.fromkeys(effects_title(measured) for measured in effects))
    size = (7.2, 4.0) if len(panels) == 1 else (4.0 * columns + 0.6, 2.7 * height + 0.8)
    with style():
        figure = Figure(figsize=size, layout="constrained")
        handles: dict[str, Line2D] = {}
        for place, axes in enumerate(figure.subplots(height, columns, squeeze=False, sharey=True).flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            axes.axhline(0, color=GREY, linewidth=0.8)
            for line in panels[place]:
                label = _line_label(line, list(lines), with_tokens="tokens" not in by)
                large = len(layers) < 20 or "markerfacecolor" in looks[line]
                look = {**looks[line], "label": label, "markersize": 4.5 if large else 2.5}
                handles[label] = _curve(axes, lines[line], look)
            first = panels[place][0]
            axes.set_title(" ".join(getattr(first, field) for field in by), fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
            axes.grid(axis="y")
            if len(layers) == 1:
                axes.set_xlim(layers[0] - 0.5, layers[0] + 0.5)
            if place + columns >= len(panels):  # the lowest of its column
                windows = any(line.window > 1 for line in lines)
                axes.set_xlabel("layer, counted from 0" + (" (middle of a window)" if windows else ""))
            if place % columns == 0:
                axes.set_ylabel(f"mean effect ({unit(effects[0])})")
        headed(figure, titles[0] if len(titles) == 1 else f"Effect on the {unit(effects[0])}", size[0])
        fitting = min(max(1, int(size[0] / (0.064 * max(map(len, handles)) + 0.75))), 4)
        even = [count for count in range(2, fitting + 1) if len(handles) % count == 0]
        legend_rows = len(handles) // even[-1] if even else -(-len(handles) // fitting)
        figure.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            ncols=-(-len(handles) // legend_rows),  # columns of the same length, or about
            frameon=False,
            fontsize=9,
            handlelength=3.2,
        )
        figure.set_size_inches(size[0], size[1] + 0.18 * legend_rows)
    return figure


def line_labels(rows: Rows) -> list[tuple[str, list[tuple[str, Rows]]]]:
    """The panels of `layer_curves` from its rows: a title, "" for a single one, and the label and points of its lines."""
    lines: dict[_Line, Rows] = {}
    for row in rows:
        lines.setdefault(_line(row), []).append(row)
    panels, by = _panels(list(lines))
    return [
        (
            " ".join(getattr(panel[0], field) for field in by),
            [(_line_label(line, list(lines), with_tokens="tokens" not in by), lines[line]) for line in panel],
        )
        for panel in panels
    ]


class _Line(NamedTuple):
    """What the points of one line have in common."""

    kind: str
    tokens: str
    window: int
    severed: str
    measurement: int


def _line(row: dict[str, Any]) -> _Line:
    return _Line(*(row[field] for field in _Line._fields))


def _panels(lines: Sequence[_Line]) -> tuple[list[list[_Line]], tuple[str, ...]]:
    """The lines of each panel, and the fields that tell the panels apart; as few panels as leave five lines in each."""
    for by in ((), ("tokens",), ("kind",), ("kind", "tokens")):
        panels: dict[tuple[str, ...], list[_Line]] = {}
        for line in lines:
            panels.setdefault(tuple(getattr(line, field) for field in by), []).append(line)
        if max(map(len, panels.values())) <= _MOST_LINES:
            break
    return list(panels.values()), by


def _line_label(line: _Line, lines: Sequence[_Line], *, with_tokens: bool) -> str:
    label = f"{line.kind}, " + ("single layer" if line.window == 1 else f"window of {line.window}")
    if with_tokens and len({other.tokens for other in lines}) > 1:
        label += f", {line.tokens}"
    if line.severed:
        label += f", {line.severed} severed"
    if not any((other.kind, other.window, other.tokens) == (line.kind, 1, line.tokens) for other in lines):
        label += " (single layers not measured)"
    twice = any(other[:4] == line[:4] and other != line for other in lines)
    return label + (f" (measurement {line.measurement})" if twice else "")


def _looks(lines: Sequence[_Line], *, tokens_apart: bool) -> dict[_Line, dict[str, Any]]:
    """Colour by kind, dash by window, marker by tokens unless panels tell them apart, open if measured again."""
    kinds, tokens = (list(dict.fromkeys(getattr(line, field) for line in lines)) for field in ("kind", "tokens"))
    windows = sorted({line.window for line in lines} - {1})
    colours = {kind: _KIND_COLOURS[kind] for kind in kinds if kind in _KIND_COLOURS}
    unused = [colour for colour in _MORE_COLOURS if colour not in colours.values()]
    colours |= dict(zip([kind for kind in kinds if kind not in colours], cycle(unused), strict=False))
    dashes: dict[Any, Any] = {1: "-", **dict(zip(windows, cycle(_DASHES), strict=False))}
    markers = dict(zip(tokens, cycle(_MARKERS[0] if tokens_apart else _MARKERS), strict=False))
    looks: dict[_Line, dict[str, Any]] = {}
    for line in lines:
        again = any(other[:3] == line[:3] for other in looks)
        looks[line] = {"color": colours[line.kind], "linestyle": dashes[line.window], "marker": markers[line.tokens]}
        looks[line] |= {"markerfacecolor": "white"} if again else {}
    return looks


def _curve(axes: Axes, points: Rows, look: dict[str, Any]) -> Line2D:
    layers, means, lows, highs = (
        np.array([row[name] for row in points], float) for name in ("layer", "mean", "low", "high")
    )
    if len(points) > 1:
        axes.fill_between(layers, lows, highs, color=look["color"], alpha=0.16, linewidth=0)
    else:
        axes.vlines(layers, lows, highs, color=look["color"], linewidth=1.4)
    (line,) = axes.plot(layers, means, linewidth=1.7, **look)
    return line
