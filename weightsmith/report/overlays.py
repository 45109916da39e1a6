"""The figures of `weightsmith locate` that are drawn over images: an effect or a weight for every patch.

Each draws from rows that the function beside it gives, as in `maps`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report.pictures import shown
from weightsmith.report.plots import short, style
from weightsmith.report.scales import Rows, colour_bar, headed, panel_title, symmetric, unit

MOST_SAMPLES = 6
"""Samples up to which images are drawn; the first ones are."""

_HUES = (("#7A2E00", "#E06A00"), ("#2680C4", "#0A3E70"))


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
    found: dict[int, dict[int, list[int]]] = {}  # layer → patch → places of the sites that have it
    cls: dict[tuple[str, int], int] = {}
    kinds: set[str] = set()
    for place, site in enumerate(effects.sites):
        if site.centre is None or site.head is not None:
            continue
        if site.tokens in ("cls", (0,)) and special > 0:
            cls[panel_title(site), site.centre] = place
        elif isinstance(site.tokens, tuple):
            for patch in (token - special for token in site.tokens if special <= token < special + count):
                found.setdefault(site.centre, {}).setdefault(patch, []).append(place)
                kinds.add(panel_title(site))
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
    values = effects.values.numpy()
    return [
        {
            "sample": effects.samples[sample],
            "name": (names or effects.samples)[sample],
            "kind": kind,
            "layer": layer,
            **_place(patch, grid),
            "effect": float(values[sample, found[layer][patch]].mean()) if patch in found[layer] else math.nan,
            "cls_effect": float(values[sample, cls[kind, layer]]) if (kind, layer) in cls else math.nan,
        }
        for sample in range(min(len(effects.samples), MOST_SAMPLES))
        for layer in layers
        for patch in range(count)
    ]


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
    across = len({row["layer"] for row in first})
    panels: list[_Overlay | None] = []
    for place, row in enumerate(first):
        image = images[place // across]
        if place % across == 0:
            panels.append(_Overlay(_in_two_lines(row["name"]), image))
        cls = "" if math.isnan(row["cls_effect"]) else f"\nCLS {row['cls_effect']:+.3g}"
        panels.append(_Overlay(f"layer {row['layer']}{cls}", image, cells[place]))
    title = f"Effect of each patch on the {unit(effects)}, {rows[0]['kind']}"
    return _overlays(panels, across + 1, symmetric(cells), f"effect ({unit(effects)})", title)


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
            **_place(patch, grid),
            "weight": float(weights[sample, patch]),
            "top": patch in top[sample],
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
        outlined = sorted(set(top[sample]))
        panels.append(_Overlay(_in_two_lines(names[sample]), images[sample]))
        panels.append(_Overlay(f"top {len(outlined)} outlined", images[sample], found, outlined))
    pairs = min(len(cells), 3 if len(cells) != 4 else 2)
    panels += [None] * (-len(panels) % (2 * pairs))
    return _overlays(panels, 2 * pairs, symmetric(cells), "weight of the patch", "")


def attention_maps(image: np.ndarray, maps: Mapping[str, np.ndarray], grid: tuple[int, int]) -> Figure:
    """An image, and beside it how much each patch is attended to, relative to an even spread, on one scale.

    Args:
        image: (channels, height, width) uint8.
        maps: title → (patches,) attention weights, patches counted along the rows of the grid.
        grid: rows and columns of patches.

    Raises:
        WeightsmithError: no maps, or weights that do not fit the grid.
    """
    wrong = [title for title, weights in maps.items() if weights.shape != (grid[0] * grid[1],)]
    if wrong or not maps:
        raise WeightsmithError(
            f"maps over {grid[0]} by {grid[1]} patches need a weight for each: {wrong or 'none given'}"
        )
    cells = [np.log2(np.maximum(weights / max(weights.mean(), 1e-30), 2.0**-4)) for weights in maps.values()]
    panels: list[_Overlay | None] = [_Overlay("the image\n", image)]
    panels += [_Overlay(title, image, found.reshape(grid)) for title, found in zip(maps, cells, strict=True)]
    label = "attention, times an even spread"
    figure = _overlays(panels, len(panels), symmetric(np.array(cells)), label, "")
    bar = figure.axes[-1]
    bar.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    bar.yaxis.set_major_formatter(lambda value, _: f"{2.0**value:.2g}")
    return figure


def _place(patch: int, grid: tuple[int, int]) -> dict[str, int]:
    return {"patch": patch, "row": patch // grid[1], "column": patch % grid[1]}


@dataclass(frozen=True, eq=False)
class _Overlay:
    """An image, over it the values of its patches, some of them outlined."""

    title: str
    image: np.ndarray
    cells: np.ndarray | None = None
    outlined: Sequence[int] = ()


def _overlays(panels: Sequence[_Overlay | None], across: int, norm: Normalize, label: str, title: str) -> Figure:
    """The panels in rows of `across`, on one scale."""
    given = [panel for panel in panels if panel is not None]
    height, width = given[0].image.shape[1:]
    heading = 0.12 + 0.16 * max(panel.title.count("\n") + 1 for panel in given)
    down = len(panels) // across
    with style():
        size = (1.75 * across + 1.0, (1.75 * min(height / width, 1.25) + heading) * down + (0.4 if title else 0.1))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        drawn = None
        for axes, panel in zip(grid.flat, panels, strict=True):
            axes.set(xticks=[], yticks=[])  # ticks that nobody sees take most of the time of laying out
            axes.set_axis_off()
            if panel is not None:
                axes.set_title(panel.title, fontsize=8.5)
                drawn = _overlay(axes, panel, norm) or drawn
        if drawn is not None:
            colour_bar(figure, drawn, grid, label, aspect=25, fraction=0.04, shrink=0.9)
        if title:
            headed(figure, title, size[0])
    return figure


def _overlay(axes: Axes, panel: _Overlay, norm: Normalize) -> Any:
    """Draw one; without values the image in its colours, with them in pale grey below."""
    picture = shown(panel.image)
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
