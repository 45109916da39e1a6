"""The figures of `weightsmith locate` as a page shows them: every value told. They are built from the rows of the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsmith.effects import Effects
from weightsmith.report.curves import layer_curve_rows, line_labels
from weightsmith.report.maps import layer_head_rows, layer_token_rows
from weightsmith.report.overlays import patch_weight_rows, token_map_rows
from weightsmith.report.parts import Block, Cell, Chart, HeatMap, Line, Patches, PatchMap, PatchRow, Point, Tabs
from weightsmith.report.parts.heatmap import MOST_COLUMNS_WITH_TEXT, decimals_for, signed
from weightsmith.report.pictures import image_uri, is_small
from weightsmith.report.plots import effects_title
from weightsmith.report.scales import Rows, unit
from weightsmith.report.scatter import grouped, screen_rows, screen_title

MOST_CELLS = 20_000
"""Cells of a map up to which it is a table with values; larger ones are shown as a picture."""


def layer_head_blocks(effects: Effects) -> list[Block]:
    """`layer_head_map` with its values: a row a layer, a column a head; of several panels a tab each."""
    return _tabbed("Maps over layers and heads", _maps(layer_head_rows(effects), "layer", "head", effects))


def layer_token_blocks(
    effects: Effects, token_labels: Sequence[str] | None = None, subject: tuple[int, int] | None = None
) -> list[Block] | None:
    """`layer_token_map` with its values: a row a token, a column a layer; None where it has too many cells."""
    rows = layer_token_rows(effects, token_labels, subject)
    if len(rows) > MOST_CELLS:
        return None
    labels = {row["tokens"]: row["label"] for row in rows}
    found = _maps(rows, "tokens", "layer", effects, list(labels.values()))
    return _tabbed("Maps over tokens and layers", found)


def layer_curve_blocks(effects: Sequence[Effects]) -> list[Block]:
    """`layer_curves` with its values; of several panels a tab each."""
    rows = layer_curve_rows(effects)
    charts: list[tuple[str, Block]] = []
    for title, lines in line_labels(rows):
        if all(math.isnan(row["mean"]) for _, points in lines for row in points):
            continue  # prompts that end with their subject have no further tokens, say
        drawn = [
            Line(
                label,
                [Point(float(row["layer"]), row["mean"], row["low"], row["high"], row["site"]) for row in points],
                dash=min(int(points[0]["window"]) - 1, 3),
            )
            for label, points in lines
        ]
        chart = Chart(
            title=f"{effects_title(effects[0])}{f', {title}' if title else ''}",
            x_title="layer, counted from 0",
            y_title=f"mean effect ({unit(effects[0])})",
            lines=drawn,
            x_ticks=sorted({float(row["layer"]) for row in rows}),
        )
        charts.append((title or "all", chart))
    return _tabbed("Effects over layers", charts)


def token_map_blocks(
    effects: Effects,
    images: np.ndarray,
    grid: tuple[int, int],
    special: int,
    layers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> list[Block]:
    """`token_maps` with their values over the images; arguments as there."""
    rows = token_map_rows(effects, grid, special, layers, names)
    cells = np.array([row["effect"] for row in rows]).reshape(-1, *grid)
    first = rows[:: grid[0] * grid[1]]  # of every map
    across = len({row["layer"] for row in first})
    found = []
    for place in range(0, len(first), across):
        maps = [
            PatchMap(_layer_title(row), values)
            for row, values in zip(first[place : place + across], cells[place : place + across], strict=True)
        ]
        found.append(_image_row(first[place]["name"], images[place // across], maps))
    title = f"Effect of each patch, {first[0]['kind']}"
    return [Patches(title=title, unit=f"effect ({unit(effects)})", images=found, file="token_maps.csv")]


def patch_weight_blocks(
    images: np.ndarray,
    weights: np.ndarray,
    grid: tuple[int, int],
    top: Sequence[Sequence[int]],
    names: Sequence[str],
) -> list[Block]:
    """`patch_weights` with their values over the images; arguments as there."""
    rows = patch_weight_rows(weights, grid, top, names)
    cells = np.array([row["weight"] for row in rows]).reshape(-1, *grid)
    found = [
        _image_row(names[i], images[i], [PatchMap(f"top {len(set(top[i]))} outlined", values, frozenset(top[i]))])
        for i, values in enumerate(cells)
    ]
    return [
        Patches(
            title="Weight of each patch",
            unit="weight of the patch",
            images=found,
            outline="one of the top patches",
            file="patch_weights.csv",
        )
    ]


def screen_blocks(screen: Effects, exact: Effects, recall: float, top: int) -> list[Block]:
    """`screen_scatter` with its values; arguments as there. [] where no site has both as numbers."""
    rows = screen_rows(screen, exact, top)
    spots = [(row["screened"], row["exact"]) for row in rows]
    spots = [spot for spot in spots if all(map(math.isfinite, spot))]
    if not spots:
        return []
    lines = []
    across, up = zip(*spots, strict=True)
    low, high = max(min(across), min(up)), min(max(across), max(up))
    if unit(screen) == unit(exact) and low < high:
        lines.append(Line("screened = exact", [Point(low, low), Point(high, high)], quiet=True, dash=1))
    for look, (name, mine) in enumerate(grouped(rows).items()):
        points = [
            Point(
                row["screened"],
                row["exact"],
                told=f"{row['site']}, screened rank {row['screened_rank']}, exact rank {row['exact_rank']}",
            )
            for row in mine
        ]
        if points:
            lines.append(Line(f"{name} ({len(points)})", points, joined=False, quiet=not look, look=3 - look))
    return [
        Chart(
            title=screen_title(rows, recall, top),
            x_title=f"screened score ({unit(screen)})",
            y_title=f"exact effect ({unit(exact)})",
            lines=lines,
        )
    ]


def _layer_title(row: dict[str, Any]) -> str:
    cls = "" if math.isnan(row["cls_effect"]) else f", CLS {signed(row['cls_effect'], 3)}"
    return f"layer {row['layer']}{cls}"


def _image_row(name: str, image: np.ndarray, maps: Sequence[PatchMap]) -> PatchRow:
    height, width = image.shape[1:]
    return PatchRow(str(name), image_uri(image), is_small(image), width / height, maps)


def _maps(
    rows: Rows, down: str, across: str, effects: Effects, row_names: Sequence[str] | None = None
) -> list[tuple[str, Block]]:
    """Panel title and map, all of one colour scale."""
    sizes = [abs(row["mean"]) for row in rows if math.isfinite(row["mean"])]
    limit = max(sizes, default=0.0) or 1.0
    decimals = decimals_for(limit)
    lines, columns = (list(dict.fromkeys(row[name] for row in rows)) for name in (down, across))
    if row_names is None:
        lines = sorted(lines)
    columns = sorted(columns)
    with_text = len(columns) <= MOST_COLUMNS_WITH_TEXT and len(lines) <= 4 * MOST_COLUMNS_WITH_TEXT
    found: list[tuple[str, Block]] = []
    for panel in dict.fromkeys(row["panel"] for row in rows):
        cells: dict[tuple[Any, Any], Cell] = {}
        for row in rows:
            if row["panel"] == panel and math.isfinite(row["mean"]):
                told = signed(row["mean"], decimals + 1)
                low, high = row.get("low", math.nan), row.get("high", math.nan)
                if not math.isnan(low):
                    told += f" ({signed(low, decimals + 1)} to {signed(high, decimals + 1)}), n = {row['n']}"
                text = signed(row["mean"], decimals) if with_text else ""
                cells[row[down], row[across]] = Cell(told, row["mean"] / limit, text, bool(row.get("marked")))
        marked = any(cell.marked for cell in cells.values())
        title = f"{effects_title(effects)}, {panel}"
        found.append(
            (
                panel,
                HeatMap(
                    title=title,
                    rows=[str(line) for line in row_names or lines],
                    columns=[str(column) for column in columns],
                    row_title="token" if down == "tokens" else down,
                    column_title=across,
                    cells=[[cells.get((line, column)) for column in columns] for line in lines],
                    ends=(signed(-limit, decimals), f"{signed(limit, decimals)} mean effect ({unit(effects)})"),
                    mark="95% interval excludes 0" if marked else "",
                ),
            )
        )
    return found


def _tabbed(label: str, found: Sequence[tuple[str, Block]]) -> list[Block]:
    if len(found) < 2:
        return [block for _, block in found]
    return [Tabs(label=label, panels=[(title, [block]) for title, block in found])]
