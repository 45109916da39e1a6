"""The figures of `weightsmith locate` over layers, heads and tokens, and a screening against the exact effects.

Each draws from rows that the function beside it gives, so that a CSV file can hold exactly what a figure shows:
`layer_curve_rows` are the points of `layer_curves`. Intervals are those of `Effects.table`; a single sample has none, and
none is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.locate.screen import rank_correlation
from weightsmith.report.heatmaps import Axis, counted, heat_maps
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, effects_title, short, style
from weightsmith.report.scales import Rows, headed, panel_title, unit
from weightsmith.report.words import TOKENS, percent, token_label, where
from weightsmith.site import Site

MOST_POSITIONS = 6
"""Token positions up to which curves have a line for each; more of them belong in a map."""

_GREEN, _PURPLE, _SKY = "#009E73", "#CC79A7", "#56B4E9"
_KIND_COLOURS = {"resid.out": BLUE, "mlp.out": VERMILION, "attn.out": _GREEN, "resid.mid": _PURPLE}
_MORE_COLOURS = (ORANGE, _SKY, "black", _PURPLE, _GREEN, VERMILION, BLUE)
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "os^DvPX"
_MOST_LINES = 5


# --- curves ---------------------------------------------------------------------------------------------------------


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
            for site, measures in _table(measured, sites)
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


# --- heat maps ------------------------------------------------------------------------------------------------------


def layer_head_rows(effects: Effects) -> Rows:
    """The cells of `layer_head_map`: panel, layer, head, site, mean, low, high, n, marked.

    Raises:
        WeightsmithError: no attention heads among the sites.
    """
    sites = [site for site in effects.sites if site.head is not None]
    if not sites:
        raise WeightsmithError("there is no map over heads to draw: measure single heads, attn.z[3,5] for instance")
    return [
        {
            "panel": panel_title(site, with_tokens=True),
            "layer": site.centre,
            "head": site.head,
            **measures,
            "marked": measures["low"] > 0 or measures["high"] < 0,
        }
        for site, measures in _table(effects, sites)
    ]


def layer_head_map(effects: Effects) -> Figure:
    """Heat map of the mean effect of every attention head; a dot where the 95% interval excludes zero.

    The interval is that of each head by itself: of a hundred heads without effect, about five have a dot. Layers may
    have different numbers of heads. Queries, keys, values or tokens that were measured apart have a panel each.

    Raises:
        WeightsmithError: as `layer_head_rows`.
    """
    rows = layer_head_rows(effects)
    return heat_maps(rows, counted("layer", rows), counted("head", rows), effects)


def layer_token_rows(
    effects: Effects, token_labels: Sequence[str] | None = None, subject: tuple[int, int] | None = None
) -> Rows:
    """The cells of `layer_token_map`: panel, layer, tokens, label, subject, site, mean.

    Raises:
        WeightsmithError: no token positions among the sites, or one beyond the labels.
    """
    sites = [site for site in effects.sites if site.layer is not None and site.head is None and site.tokens is not None]
    if not sites:
        raise WeightsmithError(
            "there is no map over tokens to draw: measure single tokens, resid.out[3]@5 for instance"
        )
    beyond = [site for site in sites if isinstance(site.tokens, tuple) and site.tokens[-1] >= len(token_labels or ())]
    if token_labels is not None and beyond:
        raise WeightsmithError(f"there are labels for {len(token_labels)} tokens, and {beyond[0]} is beyond them")
    rows: Rows = []
    order: dict[str, tuple[float, ...]] = {}
    first, end = subject or (0, 0)
    for site, mean in zip(sites, effects.at(sites).mean().tolist(), strict=True):
        assert site.tokens is not None
        inside = isinstance(site.tokens, tuple) and any(first <= token < end for token in site.tokens)
        rows.append(
            {
                "panel": panel_title(site),
                "layer": site.centre,
                "tokens": str(site).split("@")[1],
                "label": short(token_label(site.tokens, token_labels), 26) + "*" * inside,
                "subject": inside or str(site.tokens).startswith("subject"),
                "site": str(site),
                "mean": mean,
            }
        )
        order[rows[-1]["tokens"]] = _token_order(site.tokens)
    return sorted(rows, key=lambda row: (order[row["tokens"]], row["layer"]))


def layer_token_map(
    effects: Effects, token_labels: Sequence[str] | None = None, subject: tuple[int, int] | None = None
) -> Figure:
    """Heat map of the mean effect, a row for every token or block of tokens, a column for every layer.

    Kinds and windows that were measured apart have a panel each, on one scale.

    Args:
        effects: measured at token positions; sites at all tokens are left out.
        token_labels: the text of each token, by position. Without it positions are those of an image: 0 is CLS.
        subject: first and end of the positions that name the subject; their labels have a star.

    Raises:
        WeightsmithError: as `layer_token_rows`.
    """
    rows = layer_token_rows(effects, token_labels, subject)
    names = {row["tokens"]: row["label"] for row in rows}
    of_subject = {row["tokens"] for row in rows if row["subject"]}
    kept = [place for place, tokens in enumerate(names) if tokens in of_subject]
    title = "token (* of the subject)" if subject is not None and kept else "token"
    down = Axis("tokens", list(names), list(names.values()), title, kept)
    return heat_maps(rows, down, counted("layer", rows), effects, with_text=False)


def _token_order(tokens: str | tuple[int, ...]) -> tuple[float, ...]:
    """CLS first, then by position, then by name in the order of a text."""
    if isinstance(tokens, tuple):
        return tokens
    return (-1.0,) if tokens == "cls" else (math.inf, [*TOKENS, tokens].index(tokens))


# --- screened against exact -----------------------------------------------------------------------------------------


def screen_rows(screen: Effects, exact: Effects, top: int) -> Rows:
    """The points of `screen_scatter`: site, screened, exact, ranks from 1, whether each counts it among its top.

    Means are over the samples, and points are the sites, that both have. Ranks are by size of the mean, of either sign,
    as recall counts; a mean that is not a number ranks last.

    Raises:
        WeightsmithError: no site or no sample in common, or a `top` below 1.
    """
    sites, samples = set(screen.sites), set(screen.samples)
    common = [site for site in exact.sites if site in sites]
    shared = [name for name in exact.samples if name in samples]
    if not common or not shared or top < 1:
        raise WeightsmithError(
            "a screening is set against exact effects at some of its sites and on some of its samples, and a top of 1 up"
        )
    means: list[list[float]] = []
    for measured in (screen, exact):
        place = {name: i for i, name in enumerate(measured.samples)}
        means.append(measured.at(common).of([place[name] for name in shared]).mean().tolist())
    return [
        {
            "site": str(site),
            "screened": guess,
            "exact": true,
            "screened_rank": guessed,
            "exact_rank": rank,
            "screened_top": guessed <= top,
            "exact_top": rank <= top,
        }
        for site, guess, true, guessed, rank in zip(common, *means, *map(_ranks, means), strict=True)
    ]


def screen_scatter(screen: Effects, exact: Effects, recall: float, top: int) -> Figure:
    """Screened score against exact effect of each site; the top of each is marked, recall and rank correlation told.

    Args:
        screen: the cheap scores.
        exact: the effects measured by intervention, at some or all of the same sites, on some or all of the samples.
        recall: share of the exact top that the screening found.
        top: how many sites are the top.

    Raises:
        WeightsmithError: as `screen_rows`.
    """
    rows = screen_rows(screen, exact, top)
    groups: tuple[tuple[str, bool, bool, dict[str, Any]], ...] = (
        ("in neither top", False, False, {"color": "#8E99A6", "marker": "o", "s": 12, "alpha": 0.6}),
        ("only in the screening's top", True, False, {"color": ORANGE, "marker": "^", "s": 38}),
        ("only in the exact top (missed)", False, True, {"color": VERMILION, "marker": "X", "s": 44}),
        ("in both", True, True, {"color": BLUE, "marker": "D", "s": 30}),
    )
    with style():
        figure = Figure(figsize=(6.2, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=GREY, linewidth=0.7)
        axes.axvline(0, color=GREY, linewidth=0.7)
        for label, screened, true, look in groups:
            points = [row for row in rows if (row["screened_top"], row["exact_top"]) == (screened, true)]
            if points:
                across, up = ([row[name] for row in points] for name in ("screened", "exact"))
                axes.scatter(across, up, linewidths=0, label=f"{label} ({len(points)})", zorder=3, **look)
        if unit(screen) == unit(exact):
            limits = (axes.get_xlim(), axes.get_ylim())
            axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":", label="screened = exact")
            axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_xlabel(f"screened score ({unit(screen)})")
        axes.set_ylabel(f"exact effect ({unit(exact)})")
        axes.grid(color="#E9ECF0")
        axes.set_axisbelow(True)
        means = torch.tensor([[row["screened"], row["exact"]] for row in rows], dtype=torch.float64)
        correlation = rank_correlation(*means.T)
        told = "rank correlation n/a" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
        axes.set_title(f"Recall of the top {top}: {percent(recall)}, {told}, {len(rows)} site{'s' * (len(rows) != 1)}")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _ranks(values: Sequence[float]) -> list[int]:
    """Ranks by size from 1, in order among equals; what is not a number comes last."""
    ranks: list[int] = (np.argsort(np.argsort(-np.abs(values), kind="stable")) + 1).tolist()
    return ranks


# --- what they share ------------------------------------------------------------------------------------------------


def _table(effects: Effects, sites: Sequence[Site]) -> list[tuple[Site, dict[str, Any]]]:
    """Of each site what `Effects.table` says: site, mean, low, high, n. Of one sample the interval is none, NaN here."""
    table = effects.at(sites).table() if sites else []
    found = [{name: row[name] for name in ("site", "mean", "low", "high", "n")} for row in table]
    none = {"low": math.nan, "high": math.nan}
    return [(site, row if row["n"] > 1 else row | none) for site, row in zip(sites, found, strict=True)]
