"""The figures of `weightsmith locate`. Each draws from rows that the function beside it gives, so that a CSV file can
hold exactly what a figure shows: `layer_curve_rows` are the points of `layer_curves`.

Diverging colours run from vermilion (below zero) over white to blue (above), symmetric about zero, and can be told apart
with any common colour blindness. Intervals are those of `Effects.table`; a single sample has none, and none is drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.stats import rankdata

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report.plots import BLUE, GREY, ORANGE, VERMILION, effects_title, short, style
from weightsmith.report.words import percent
from weightsmith.site import Site

Rows = list[dict[str, Any]]

MOST_SAMPLES = 6
"""Samples up to which images are drawn; the first ones are."""
MOST_CELLS_WITH_TEXT = 12
"""Rows and columns up to which a heat map shows its numbers."""
MOST_POSITIONS = 6
"""Token positions up to which curves have a line for each; more of them belong in a map."""

_GREEN, _PURPLE, _SKY = "#009E73", "#CC79A7", "#56B4E9"
_KIND_COLOURS = {"resid.out": BLUE, "mlp.out": VERMILION, "attn.out": _GREEN, "resid.mid": _PURPLE}
_MORE_COLOURS = (ORANGE, _SKY, "black", _PURPLE, _GREEN, VERMILION, BLUE)
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "os^DvPX"
_BLANK = "#E3E6EA"
_MOST_LINES = 5
_DIVERGING: Colormap = LinearSegmentedColormap.from_list(
    "weightsmith_diverging", ["#7A2E00", "#D55E00", "#F6C39B", "#FFFFFF", "#9CC9E8", "#2F7FBC", "#0A3E70"]
).with_extremes(bad=_BLANK)
_HUES = (("#7A2E00", "#E06A00"), ("#2680C4", "#0A3E70"))
_METRICS = {"kl": "negative KL divergence"}
_TOKENS = {
    "cls": "CLS",
    "patches": "patches",
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "after_first": "first token after subject",
    "after_middle": "further tokens",
    "last": "last token",
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# --- curves ---------------------------------------------------------------------------------------------------------


def layer_curve_rows(effects: Sequence[Effects]) -> Rows:
    """The points of `layer_curves`: kind, tokens, window, severed, measurement, layer, site, mean, low, high, n.

    Points of a line follow each other, by layer. `measurement` counts the `Effects` given, from 1.

    Raises:
        WeightsmithError: nothing that a curve can show, or metrics that cannot share an axis.
    """
    _check_units(effects)
    rows: Rows = []
    for place, measured in enumerate(effects, 1):
        sites = [site for site in measured.sites if site.layer is not None and site.head is None]
        positions = {site.tokens for site in sites if isinstance(site.tokens, tuple)}
        if len(positions) > MOST_POSITIONS:
            sites = [site for site in sites if site.tokens not in positions]
        for site, row in _table(measured, sites):
            rows.append(
                {
                    "kind": site.kind,
                    "tokens": _words(site.tokens),
                    "window": site.span,
                    "severed": ", ".join(measured.info.get("sever", ())),
                    "measurement": place,
                    "layer": site.centre,
                    **{name: row[name] for name in ("site", "mean", "low", "high", "n")},
                }
            )
    if not rows:
        raise WeightsmithError(
            "there are no curves over layers to draw: measure whole layers, at named tokens or a few positions"
        )
    lines = list(dict.fromkeys(_line(row) for row in rows))
    kinds, tokens = (list(dict.fromkeys(getattr(line, field) for line in lines)) for field in ("kind", "tokens"))
    lines.sort(key=lambda line: (kinds.index(line.kind), tokens.index(line.tokens), *line[2:]))
    order = {line: place for place, line in enumerate(lines)}  # single layers right before the windows of their kind
    return sorted(rows, key=lambda row: (order[_line(row)], row["layer"]))


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
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    height = -(-len(panels) // columns)  # rounded up
    layers = sorted({row["layer"] for row in rows})
    with style():
        size = (7.2, 4.0) if len(panels) == 1 else (4.0 * columns + 0.6, 2.7 * height + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        looks = _looks(list(lines), tokens_apart="tokens" in by)
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
                axes.set_ylabel(f"mean effect ({_unit(effects[0])})")
        figure.suptitle(_wrapped(_title(effects), size[0]), fontsize=11)
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
            "panel": _panel_title(site, with_tokens=True),
            "layer": site.centre,
            "head": site.head,
            **{name: row[name] for name in ("site", "mean", "low", "high", "n")},
            "marked": row["low"] > 0 or row["high"] < 0,
        }
        for site, row in _table(effects, sites)
    ]


def layer_head_map(effects: Effects) -> Figure:
    """Heat map of the mean effect of every attention head; a dot where the 95% interval excludes zero.

    The interval is that of each head by itself: of a hundred heads without effect, about five have a dot. Layers may
    have different numbers of heads. Queries, keys, values or tokens that were measured apart have a panel each.

    Raises:
        WeightsmithError: as `layer_head_rows`.
    """
    rows = layer_head_rows(effects)
    layers, heads = (sorted({row[name] for row in rows}) for name in ("layer", "head"))
    return _heat_maps(
        rows,
        _Axis("layer", layers, [str(layer) for layer in layers]),
        _Axis("head", heads, [str(head) for head in heads]),
        effects,
    )


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
    for site, mean in zip(sites, effects.at(sites).mean().tolist(), strict=True):
        inside = isinstance(site.tokens, tuple) and any(_within(token, subject) for token in site.tokens)
        rows.append(
            {
                "panel": _panel_title(site),
                "layer": site.centre,
                "tokens": str(site).split("@")[1],
                "label": short(_token_label(site.tokens, token_labels), 26) + "*" * inside,
                "subject": inside or str(site.tokens).startswith("subject"),
                "site": str(site),
                "mean": mean,
            }
        )
    place = {str(row["tokens"]): _token_order(site.tokens) for row, site in zip(rows, sites, strict=True)}
    return sorted(rows, key=lambda row: (place[row["tokens"]], row["layer"]))


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
    layers = sorted({row["layer"] for row in rows})
    names = {row["tokens"]: row["label"] for row in rows}
    of_subject = {row["tokens"] for row in rows if row["subject"]}
    kept = [place for place, tokens in enumerate(names) if tokens in of_subject]
    title = "token (* of the subject)" if subject is not None and kept else "token"
    return _heat_maps(
        rows,
        _Axis("tokens", list(names), list(names.values()), title, kept),
        _Axis("layer", layers, [str(layer) for layer in layers]),
        effects,
        with_text=False,
    )


@dataclass(frozen=True)
class _Axis:
    """An axis of a heat map: the rows' field, its values in order, their labels; those of `kept` are thinned last."""

    field: str
    values: Sequence[Any]
    labels: Sequence[str]
    title: str = ""
    kept: Sequence[int] = ()

    def ticks(self, most: int) -> tuple[list[int], list[str]]:
        """Places and labels, at most about `most` of them, evenly spaced but for those kept."""
        step = -(-len(self.labels) // max(most, 1))
        chosen = list(self.kept[::step])
        chosen += [p for p in range(0, len(self.labels), step) if all(abs(p - other) >= step for other in chosen)]
        return sorted(chosen), [self.labels[place] for place in sorted(chosen)]


def _heat_maps(rows: Rows, down: _Axis, across: _Axis, effects: Effects, *, with_text: bool = True) -> Figure:
    """A panel for each value of the rows' `panel`, one colour scale for all."""
    grids: dict[str, np.ndarray] = {}
    at_row, at_column = ({value: place for place, value in enumerate(axis.values)} for axis in (down, across))
    for row in rows:
        cells = grids.setdefault(row["panel"], np.full((len(at_row), len(at_column)), np.nan))
        cells[at_row[row[down.field]], at_column[row[across.field]]] = row["mean"]
    text = with_text and max(len(at_row), len(at_column)) <= MOST_CELLS_WITH_TEXT
    tall = min(max(7.5, 0.025 * len(at_row)), 11.0)
    wide = 5.5 if len(grids) < 3 else 4.3  # three fit beside each other
    cell = (0.52, 0.34) if text else (min(max(0.13, wide / len(at_column)), 0.36), min(0.26, tall / len(at_row)))
    width, height = max(len(at_column) * cell[0], 1.6), max(len(at_row) * cell[1], 1.1)
    columns = min(len(grids), max(1, int(14 // width)), 3)
    lines = -(-len(grids) // columns)
    with style():
        label_room = 0.4 + 0.07 * max(len(label) for label in down.labels)
        size = (columns * (width + 0.25) + label_room + 1.1, lines * (height + 0.75) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        norm = _symmetric([row["mean"] for row in rows])
        panels = figure.subplots(lines, columns, squeeze=False)
        for place, axes in enumerate(panels.flat):
            if place >= len(grids):
                axes.set_axis_off()
                continue
            name, cells = list(grids.items())[place]
            axes.imshow(cells, cmap=_DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
            axes.set_title(name, fontsize=10)
            axes.set_xticks(*across.ticks(int(width / 0.24)), fontsize=8)
            axes.set_yticks(*down.ticks(int(height / 0.145)), fontsize=8)
            axes.tick_params(length=2)
            axes.set_xlabel(across.title or f"{across.field}, counted from 0", fontsize=9)
            if place % columns == 0:
                axes.set_ylabel(down.title or f"{down.field}, counted from 0", fontsize=9)
            else:
                axes.set_yticklabels([])
            for spine in axes.spines.values():
                spine.set_visible(True)
            if text:
                _numbers(axes, cells, norm)
            dots = [
                (at_column[row[across.field]], at_row[row[down.field]], _ink(row["mean"], norm))
                for row in rows
                if row["panel"] == name and row.get("marked")
            ]
            if dots:
                xs, ys, colours = zip(*dots, strict=True)
                corner = (0.38, -0.34) if text else (0.0, 0.0)  # clear of the number
                size_of_dot = min(max((0.22 * 72 * min(cell)) ** 2, 1.5), 9)
                axes.scatter(np.add(xs, corner[0]), np.add(ys, corner[1]), s=size_of_dot, color=colours, linewidths=0)
        scale = figure.colorbar(panels[0, 0].images[0], ax=panels, aspect=22, pad=0.015, fraction=0.05)
        note = _scaled(norm)[2] if text else ""
        scale.set_label(f"mean effect ({_unit(effects)})" + (f"; cells {note}" if note else ""), fontsize=9)
        _quiet_scale(scale)
        figure.suptitle(_wrapped(_headline(effects), max(size[0], 5.8)), fontsize=11)
        handles: list[Any] = []
        if any(row.get("marked") for row in rows):
            handles.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle="none"))
            handles[-1].set_label("95% interval excludes 0")
        if any(np.isnan(cells).any() for cells in grids.values()):
            handles.append(Patch(facecolor=_BLANK, edgecolor=GREY, linewidth=0.5, label="not there or not measured"))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _numbers(axes: Axes, cells: np.ndarray, norm: Normalize) -> None:
    factor, decimals, _ = _scaled(norm)
    for (row, column), value in np.ndenumerate(cells):
        if math.isfinite(value):
            text = f"{round(value * factor, decimals) + 0.0:.{decimals}f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=_ink(value, norm))


# --- over images ----------------------------------------------------------------------------------------------------


def token_map_rows(
    effects: Effects,
    grid: tuple[int, int],
    special: int,
    layers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Rows:
    """The patches of `token_maps`: sample, name, kind, layer, patch, row, column, effect, cls_effect.

    An effect that was not measured is NaN; a patch in several blocks of tokens has the mean of theirs.

    Raises:
        WeightsmithError: no sites at patch positions, more than one kind or window, a layer that was not measured.
    """
    count = grid[0] * grid[1]
    patches = range(special, special + count)
    found: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    cls: dict[tuple[str, int], int] = {}
    kinds: set[str] = set()
    for place, site in enumerate(effects.sites):
        if site.centre is None or site.head is not None:
            continue
        if site.tokens in ("cls", (0,)) and special > 0:
            cls[_panel_title(site), site.centre] = place
        elif isinstance(site.tokens, tuple) and any(token in patches for token in site.tokens):
            found.setdefault(site.centre, []).append((place, site.tokens))
            kinds.add(_panel_title(site))
    if len(kinds) != 1:
        raise WeightsmithError(
            "there are no effects of single patches to draw over images: measure resid.out[3]@5 for instance"
            if not kinds
            else "effects of several kinds or windows cannot be drawn over one image: choose one with Effects.at"
        )
    (kind,) = kinds
    if layers is None:
        measured = sorted(found)
        layers = [measured[i] for i in sorted({round(i) for i in np.linspace(0, len(measured) - 1, 4)})]
    absent = [layer for layer in layers if layer not in found]
    if absent:
        raise WeightsmithError(f"the patches of layer {absent[0]} were not measured: known: {sorted(found)}")
    rows: Rows = []
    values = effects.values.numpy()
    for sample in range(min(len(effects.samples), MOST_SAMPLES)):
        for layer in layers:
            covered: list[list[float]] = [[] for _ in range(count)]
            for place, tokens in found[layer]:
                for token in tokens:
                    if token in patches:
                        covered[token - special].append(float(values[sample, place]))
            rows += [
                {
                    "sample": effects.samples[sample],
                    "name": (names or effects.samples)[sample],
                    "kind": kind,
                    "layer": layer,
                    "patch": patch,
                    "row": patch // grid[1],
                    "column": patch % grid[1],
                    "effect": float(np.mean(covering)) if covering else math.nan,
                    "cls_effect": float(values[sample, cls[kind, layer]]) if (kind, layer) in cls else math.nan,
                }
                for patch, covering in enumerate(covered)
            ]
    return rows


def token_maps(
    effects: Effects,
    images: np.ndarray,
    grid: tuple[int, int],
    special: int,
    layers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Each image, and beside it for a few layers the effect of every patch, drawn over the image.

    Args:
        effects: measured at patch positions of one kind of site, and at CLS for the titles.
        images: (samples, channels, height, width) uint8; the first six are drawn.
        grid: rows and columns of patches.
        special: tokens before the first patch (CLS, registers).
        layers: the layers drawn; None draws four of those measured, evenly spaced.
        names: what to call each image; None takes the samples' names.

    Raises:
        WeightsmithError: as `token_map_rows`, or images or names that do not match the samples.
    """
    if len(images) != len(effects.samples) or len(names or effects.samples) != len(images):
        raise WeightsmithError(
            f"{len(effects.samples)} samples need an image and a name each, not {len(images)} images"
        )
    rows = token_map_rows(effects, grid, special, layers, names)
    cells = np.array([row["effect"] for row in rows]).reshape(-1, *grid)
    first = rows[:: grid[0] * grid[1]]  # of every panel
    shown = list(dict.fromkeys(row["layer"] for row in first))
    count = len(first) // len(shown)
    panels: list[_Overlay | None] = []
    for place, row in enumerate(first):
        if place % len(shown) == 0:
            panels.append(_Overlay(_in_two_lines(row["name"]), images[place // len(shown)]))
        cls = "" if math.isnan(row["cls_effect"]) else f"\nCLS {row['cls_effect']:+.3g}"
        panels.append(_Overlay(f"layer {row['layer']}{cls}", images[place // len(shown)], cells[place]))
    title = f"Effect of each patch on the {_unit(effects)}, {rows[0]['kind']}"
    return _overlays(panels, (count, len(shown) + 1), _symmetric(cells), f"effect ({_unit(effects)})", title)


def patch_weight_rows(
    weights: np.ndarray, grid: tuple[int, int], top: Sequence[Sequence[int]], names: Sequence[str]
) -> Rows:
    """The patches of `patch_weights`: name, patch, row, column, weight, top.

    Raises:
        WeightsmithError: weights, top patches or names that do not match each other or the grid.
    """
    if weights.ndim != 2 or weights.shape[1] != grid[0] * grid[1] or not len(weights) == len(top) == len(names):
        raise WeightsmithError(
            f"weights of shape {weights.shape} need that many names and lists of top patches ({len(names)}, {len(top)} "
            f"given), and one weight for each of the {grid[0]} by {grid[1]} patches"
        )
    beyond = [patch for patches in top for patch in patches if not 0 <= patch < weights.shape[1]]
    if beyond:
        raise WeightsmithError(f"top patch {beyond[0]} is beyond the {weights.shape[1]} patches")
    return [
        {
            "name": names[sample],
            "patch": patch,
            "row": patch // grid[1],
            "column": patch % grid[1],
            "weight": float(weights[sample, patch]),
            "top": patch in set(top[sample]),
        }
        for sample in range(min(len(weights), MOST_SAMPLES))
        for patch in range(weights.shape[1])
    ]


def patch_weights(
    images: np.ndarray,
    weights: np.ndarray,
    grid: tuple[int, int],
    top: Sequence[Sequence[int]],
    names: Sequence[str],
) -> Figure:
    """Each image, and beside it the weight of every patch drawn over it, with the top patches outlined.

    Args:
        images: (n, channels, height, width) uint8; the first six are drawn.
        weights: (n, patches), patches counted along the rows of the grid.
        grid: rows and columns of patches.
        top: the top patches of each image.
        names: what to call each image.

    Raises:
        WeightsmithError: inputs that do not match each other.
    """
    rows = patch_weight_rows(weights, grid, top, names)
    if len(images) != len(weights):
        raise WeightsmithError(f"weights of {len(weights)} images need that many images, not {len(images)}")
    cells = np.array([row["weight"] for row in rows]).reshape(-1, *grid)
    panels: list[_Overlay | None] = []
    for sample, found in enumerate(cells):
        panels.append(_Overlay(_in_two_lines(names[sample]), images[sample]))
        panels.append(
            _Overlay(f"top {len(set(top[sample]))} outlined", images[sample], found, sorted(set(top[sample])))
        )
    pairs = min(len(cells), 3 if len(cells) != 4 else 2)
    lines = -(-len(cells) // pairs)
    panels += [None] * (lines * pairs * 2 - len(panels))
    return _overlays(panels, (lines, pairs * 2), _symmetric(cells), "weight of the patch", "")


@dataclass(frozen=True, eq=False)
class _Overlay:
    """An image, over it the values of its patches, some of them outlined."""

    title: str
    image: np.ndarray
    cells: np.ndarray | None = None
    outlined: Sequence[int] = ()


def _overlays(
    panels: Sequence[_Overlay | None], shape: tuple[int, int], norm: Normalize, label: str, title: str
) -> Figure:
    height, width = next(panel.image.shape[1:] for panel in panels if panel is not None)
    heading = 0.12 + 0.16 * max(panel.title.count("\n") + 1 for panel in panels if panel is not None)
    with style():
        size = (
            1.75 * shape[1] + 1.0,
            (1.75 * min(height / width, 1.25) + heading) * shape[0] + (0.4 if title else 0.1),
        )
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(*shape, squeeze=False)
        drawn = None
        for axes, panel in zip(grid.flat, panels, strict=True):
            axes.set_axis_off()
            if panel is not None:
                axes.set_title(panel.title, fontsize=8.5)
                drawn = _overlay(axes, panel, norm) or drawn
        if drawn is not None:
            scale = figure.colorbar(drawn, ax=grid, aspect=25, pad=0.015, fraction=0.04, shrink=0.9)
            scale.set_label(label, fontsize=9)
            _quiet_scale(scale)
        if title:
            figure.suptitle(_wrapped(title, size[0]), fontsize=11)
    return figure


def _overlay(axes: Axes, panel: _Overlay, norm: Normalize) -> Any:
    """Draw one; without values the image in its colours, with them in pale grey below."""
    picture = panel.image[0] if len(panel.image) < 3 else panel.image[:3].transpose(1, 2, 0)
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    if panel.cells is None:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
        return None
    grey = picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114])
    axes.imshow(0.55 + 0.45 * grey / 255, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    drawn = axes.imshow(panel.cells, cmap=_clear_at_zero(), norm=norm, extent=extent, interpolation="nearest")
    rows, columns = panel.cells.shape
    step = np.array([width / columns, height / rows])
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    boxes = [(corners + np.array([patch % columns, patch // columns])) * step for patch in panel.outlined]
    for colour, thick in (("white", 2.4), ("black", 1.2)):  # legible over any colour
        axes.add_collection(LineCollection(boxes, colors=colour, linewidths=thick, joinstyle="miter"))
    return drawn


def _in_two_lines(name: str) -> str:
    return "\n".join(textwrap.wrap(short(name, 50), 26)[:2])


def _clear_at_zero() -> Colormap:
    """Two hues that fade towards zero, so that the image shows where nothing happens and no weak effect whitens it."""
    below, above = (LinearSegmentedColormap.from_list("", ends)(np.linspace(0, 1, 128)) for ends in _HUES)
    colours = np.concatenate([below, above])
    colours[:, 3] = 0.95 * np.abs(np.linspace(-1, 1, 256))
    return ListedColormap(colours, "weightsmith_overlay").with_extremes(bad=(0, 0, 0, 0))


# --- screened against exact -----------------------------------------------------------------------------------------


def screen_rows(screen: Effects, exact: Effects, top: int) -> Rows:
    """The points of `screen_scatter`: site, screened, exact, ranks from 1, whether each counts it among its top.

    Means are over the samples, and points are the sites, that both have. Ranks are by size of the mean, of either sign,
    as recall counts; a mean that is not a number ranks last.

    Raises:
        WeightsmithError: no site or no sample in common, or a `top` below 1.
    """
    known = set(screen.sites)
    common = [site for site in exact.sites if site in known]
    shared = [name for name in exact.samples if name in set(screen.samples)]
    if not common or not shared or top < 1:
        raise WeightsmithError(
            "a screening is set against exact effects at some of its sites and on some of its samples, and a top of 1 up"
        )
    means: list[list[float]] = []
    for measured in (screen, exact):
        place = {name: i for i, name in enumerate(measured.samples)}
        values = measured.at(common).values[[place[name] for name in shared]]
        means.append(values.nanmean(0).tolist())
    ranks = [_ranks(values) for values in means]
    return [
        {
            "site": str(site),
            "screened": means[0][i],
            "exact": means[1][i],
            "screened_rank": ranks[0][i],
            "exact_rank": ranks[1][i],
            "screened_top": ranks[0][i] <= top,
            "exact_top": ranks[1][i] <= top,
        }
        for i, site in enumerate(common)
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
        if _unit(screen) == _unit(exact):
            limits = (axes.get_xlim(), axes.get_ylim())
            axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":", label="screened = exact")
            axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_xlabel(f"screened score ({_unit(screen)})")
        axes.set_ylabel(f"exact effect ({_unit(exact)})")
        axes.grid(color="#E9ECF0")
        axes.set_axisbelow(True)
        correlation = _rank_correlation([row["screened"] for row in rows], [row["exact"] for row in rows])
        told = "rank correlation n/a" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
        axes.set_title(f"Recall of the top {top}: {percent(recall)}, {told}, {len(rows)} site{'s' * (len(rows) != 1)}")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation over the pairs of numbers; NaN for fewer than two of them or a constant."""
    pairs = np.array([first, second], float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if pairs.shape[1] < 2 or (pairs.max(1) == pairs.min(1)).any():
        return math.nan
    return float(np.corrcoef(rankdata(pairs, axis=1))[0, 1])


def _ranks(values: Sequence[float]) -> list[int]:
    """Ranks by size from 1, in order among equals."""
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -abs(values[i])))
    ranks = [0] * len(values)
    for place, index in enumerate(order, 1):
        ranks[index] = place
    return ranks


# --- what they share ------------------------------------------------------------------------------------------------


def _table(effects: Effects, sites: Sequence[Site]) -> list[tuple[Site, dict[str, Any]]]:
    """Each site's row of `Effects.table`; of a single sample the interval is no interval, and NaN here."""
    table = effects.at(sites).table() if sites else []
    none = {"low": math.nan, "high": math.nan}
    return [(site, row if row["n"] > 1 else row | none) for site, row in zip(sites, table, strict=True)]


def _check_units(effects: Sequence[Effects]) -> None:
    units = list(dict.fromkeys(_unit(measured) for measured in effects))
    if len(units) > 1:
        raise WeightsmithError(f"effects in {units[0]} and in {units[1]} cannot share an axis: draw a figure each")


def _unit(effects: Effects) -> str:
    if effects.info.get("normalised"):
        return "share of the corruption's effect"
    return _METRICS.get(effects.metric, effects.metric.replace("_", " "))


def _headline(effects: Effects) -> str:
    return effects_title(replace(effects, metric=_METRICS.get(effects.metric, effects.metric)))


def _title(effects: Sequence[Effects]) -> str:
    titles = dict.fromkeys(_headline(measured) for measured in effects)
    return next(iter(titles)) if len(titles) == 1 else f"Effect on the {_unit(effects[0])}"


def _panel_title(site: Site, *, with_tokens: bool = False) -> str:
    where = f" {_words(site.tokens)}" if with_tokens and site.tokens is not None else ""
    return site.kind + where + (f", windows of {site.span} layers" if site.span > 1 else "")


def _words(tokens: str | tuple[int, ...] | None) -> str:
    """Where the tokens are: "at CLS", "at tokens 3 to 5"."""
    if isinstance(tokens, tuple):
        return f"at token{'s' * (len(tokens) > 1)} {_range(tokens)}"
    return {None: "at all tokens", "cls": "at CLS"}.get(tokens, f"at the {_TOKENS.get(str(tokens), tokens)}")


def _range(tokens: tuple[int, ...]) -> str:
    if len(tokens) > 1 and tokens[-1] - tokens[0] == len(tokens) - 1:
        return f"{tokens[0]} to {tokens[-1]}"
    return ", ".join(str(token) for token in tokens)


def _token_label(tokens: str | tuple[int, ...] | None, labels: Sequence[str] | None) -> str:
    if not isinstance(tokens, tuple):
        return _TOKENS.get(str(tokens), str(tokens))
    if labels is None:
        return "CLS" if tokens == (0,) else _range(tokens)
    return " ".join(_legible(labels[token]) for token in tokens)


def _legible(text: str) -> str:
    """A token's text with its control characters written out; only blanks are one visible sign."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text.strip(" ")) or "␣"


def _token_order(tokens: str | tuple[int, ...] | None) -> tuple[float, ...]:
    """CLS first, then by position, then by name in the order of a text."""
    if isinstance(tokens, tuple):
        return tokens
    return (-1.0,) if tokens == "cls" else (math.inf, [*_TOKENS, tokens].index(tokens))


def _within(token: int, bounds: tuple[int, int] | None) -> bool:
    return bounds is not None and bounds[0] <= token < bounds[1]


def _symmetric(values: Any) -> Normalize:
    found = np.asarray(values, float)
    limit = float(np.abs(found[np.isfinite(found)]).max(initial=0.0)) or 1.0
    return Normalize(-limit, limit)


def _ink(value: float, norm: Normalize) -> str:
    return "white" if abs(float(norm(value)) - 0.5) > 0.29 else "black"


def _scaled(norm: Normalize) -> tuple[float, int, str]:
    """A factor and decimals that give the scale's end two or three digits, and a note that tells the factor."""
    power = math.floor(math.log10(float(norm.vmax or 1.0)))
    if -2 <= power <= 2:
        return 1.0, 2 - power if power >= 0 else 1 - power, ""
    return 10.0**-power, 2, f"× 10{str(power).translate(_SUPERSCRIPTS)}"


def _quiet_scale(scale: Any) -> None:
    scale.formatter.set_powerlimits((-3, 4))
    scale.ax.tick_params(labelsize=8)
    scale.ax.yaxis.get_offset_text().set_fontsize(8)
    scale.outline.set_linewidth(0.5)


def _wrapped(title: str, inches: float) -> str:
    return textwrap.fill(title, max(20, int(inches / 0.085)))
