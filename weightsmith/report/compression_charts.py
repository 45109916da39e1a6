"""What the page of `weightsmith compress` shows beside the evaluation, every value told: what smaller models lose over what
they keep, what stays of each, and how faithful parts of a model are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightsmith.circuit import Kept, Shape
from weightsmith.report.compression import LEAST_SHOWN, MOST_SHOWN, legend
from weightsmith.report.parts import Bars, Block, Cell, Chart, HeatMap, Level, Line, Point, Tabs, Words
from weightsmith.report.parts.blocks import MOST_ROWS
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.parts.heatmap import MOST_COLUMNS_WITH_TEXT
from weightsmith.report.words import Row, number


def frontier_blocks(rows: Sequence[Row], chosen: Sequence[tuple[str, str]] = ()) -> list[Block]:
    """What smaller models lose over what they keep: accuracy, and KL to the baseline, on held-out images; [] without numbers.

    Args:
        rows: of `compress_metrics.csv`; chosen: what for, and the name of the model that is recommended for it.
    """
    purposes: dict[str, list[str]] = {}
    for purpose, name in chosen:
        purposes.setdefault(name, []).append(purpose)
    panels: list[tuple[str, Sequence[Block]]] = []
    for title, value, y_title, shares in (
        ("Change of accuracy", "accuracy_change", "accuracy − the baseline's", True),
        ("Divergence from the baseline", "kl_held_out", "KL on held-out images, nats", False),
    ):
        lines: list[Line] = []
        for method in dict.fromkeys(str(row["method"]) for row in rows):
            points = [
                Point.of(
                    row,
                    "macs_kept",
                    value,
                    "; ".join([str(row["model"]), *purposes.get(str(row["model"]), ())]),
                    str(row["model"]) in purposes,
                )
                for row in rows
                if row["method"] == method
            ]
            lines.append(Line(method, sorted(points, key=lambda point: point.x), dash=len(lines)))
        if any(math.isfinite(point.x) and math.isfinite(point.y) for line in lines for point in line.points):
            chart = Chart(
                title=f"{title} over the multiplications that are kept",
                x_title="multiplications kept",
                y_title=y_title,
                lines=lines,
                levels=[Level("the baseline", 0.0)],
                x_percent=True,
                y_percent=shares,
                chosen="recommended",
            )
            panels.append((title, [chart]))
    return (
        [Tabs(label="Frontier", panels=panels)]
        if len(panels) > 1
        else [block for _, panel in panels for block in panel]
    )


def divergence_blocks(rows: Sequence[Row]) -> list[Block]:
    """KL of each model to the baseline on the images that judged its search and on those that nothing saw, and its budget;
    [] without numbers.

    Args:
        rows: of `compress_metrics.csv`.
    """
    lines = [
        Line(name, [Point.of({**row, "at": at}, "at", column) for at, row in enumerate(rows)])
        for column, name in (("kl", "judging images"), ("kl_held_out", "held-out images"))
    ]
    budgets = [Point(float(at), number(row["goal"])) for at, row in enumerate(rows) if row["budget_holds"]]
    lines = [line for line in lines if has_numbers([line])]
    if not lines:
        return []
    return [
        Bars(
            title="Divergence from the baseline",
            names=[str(row["model"]) for row in rows],
            row_title="model",
            value_title="KL, nats",
            lines=[*lines, Line("budget of the search", budgets)] if budgets else lines,
        )
    ]


def kept_blocks(models: Sequence[tuple[str, Kept]], whole: Shape) -> list[Block]:
    """How many heads and neurons stay in each block, a row a model, then of each model a map of its heads, in a tab.

    Args:
        models: name, and what stays of the heads and neurons of `whole`; the first `MOST_ROWS` have a row, and the first
            `MOST_SHOWN` a map.
    """
    if not models:
        return []
    shown = models[:MOST_ROWS]
    found: list[Block] = [
        _counts("heads", [(name, [len(part) for part in kept.heads]) for name, kept in shown], whole.heads),
        _counts("MLP neurons", [(name, [len(part) for part in kept.neurons]) for name, kept in shown], whole.neurons),
    ]
    if len(models) > len(shown):
        found.append(Words(sentences=[f"The first {len(shown)} of {len(models):,} models."]))
    found.append(
        Tabs(label="Models", panels=[(name, [_heads(name, kept, whole)]) for name, kept in models[:MOST_SHOWN]])
    )
    if len(models) > MOST_SHOWN:
        found.append(Words(sentences=[f"Maps of heads are of the first {MOST_SHOWN} of {len(models):,} models."]))
    return found


def _counts(called: str, models: Sequence[tuple[str, Sequence[int]]], whole: Sequence[int]) -> HeatMap:
    with_text = len(whole) <= MOST_COLUMNS_WITH_TEXT
    return HeatMap(
        title=f"How many {called} stay in each block",
        rows=[name for name, _ in models],
        columns=[str(block) for block in range(len(whole))],
        row_title="model",
        column_title="block",
        cells=[
            [
                Cell(
                    f"{count} of {there} {called} stay",
                    count / there if there else 0.0,
                    str(count) if with_text else "",
                )
                for count, there in zip(counts, whole, strict=True)
            ]
            for _, counts in models
        ],
        ends=("none", "all"),
        signed=False,
    )


def _heads(name: str, kept: Kept, whole: Shape) -> HeatMap:
    most = max(whole.heads)
    return HeatMap(
        title=f"Heads that stay in {name}",
        rows=[str(layer) for layer in range(len(whole.heads))],
        columns=[str(head) for head in range(most)],
        row_title="block",
        column_title="head",
        cells=[
            [_head(head in kept.heads[layer]) if head < there else None for head in range(most)]
            for layer, there in enumerate(whole.heads)
        ],
        empty="not in the whole model",
        notes=["A disc: the head stays; a dash: it is removed."],
    )


def _head(stays: bool) -> Cell:
    return Cell("stays", 1.0, "●") if stays else Cell("removed", 0.0, "–")


def faithfulness_blocks(curves: Sequence[Row]) -> list[Block]:
    """`faithfulness_figure` with its values; [] without numbers.

    Args:
        curves: rows as there.
    """
    lines: list[Line] = []
    for place, name in enumerate(dict.fromkeys(str(row["name"]) for row in curves)):
        rows = sorted((row for row in curves if str(row["name"]) == name), key=lambda row: number(row["fraction"]))
        points = [
            Point(
                number(row["fraction"]), number(row["value"]), number(row.get("low", "")), number(row.get("high", ""))
            )
            for row in rows
        ]
        lines.append(Line(legend(name, rows[0]), points, dash=place))
    if not has_numbers(lines):
        return []
    values = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if math.isfinite(v)]
    low, high = max(min(*values, 0.0), LEAST_SHOWN), max(*values, 1.0)
    cut = min(values) < LEAST_SHOWN
    return [
        Chart(
            title="Faithfulness over the share that is kept",
            x_title="share that is kept",
            y_title="faithfulness",
            lines=lines,
            levels=[Level("the whole model", 1.0), Level("nothing of what is ranked", 0.0)],
            bounds="95% interval",
            x_axis="log10 from 0",
            x_ticks=(0.0, 0.001, 0.01, 0.1, 1.0),
            x_percent=True,
            y_range=(low - 0.03 * (high - low), high + 0.03 * (high - low)),
            caption=f"Values below {LEAST_SHOWN:g} are drawn at the lower edge; the points say them." if cut else "",
        )
    ]
