"""A comparison of editing methods as one HTML page and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.report.comparison import MEASURES, TITLES, comparison_table
from weightsmith.report.parts import Block, Chart, Line, Point, Tabs
from weightsmith.report.parts.bars import Bars
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.render import PageInputs, figures_section, page_of, tables_section
from weightsmith.report.words import Row, number

_ABOUT = (
    "Editing methods side by side: each point is the mean over draws of requests, the same draws for every method, with "
    "Student's 95% interval over them."
)
_CAPTION = (
    "Each measure by method and batch size, and over the batch size. Of images, paraphrases are augmented views, and "
    "neighbourhood is locality."
)

_ALL = (-0.02, 1.02)
"""All of 0 to 100%: a part of it would make small differences look large."""


@dataclass(frozen=True, eq=False)
class ComparisonInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        summary: sentences at the top; notes: what a reader must know to judge the numbers.
        table: the rows of `comparison_table`; rows: those of `baseline_comparison.csv`, which the page draws.
        failed: cells that could not be measured, and why.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    table: Sequence[Row] = ()
    rows: Sequence[Row] = ()
    failed: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_comparison(inputs: ComparisonInputs) -> str:
    """The page as text."""
    figures = comparison_blocks(inputs.rows) if inputs.rows else []
    tables = [
        ("Mean over the draws, with intervals", inputs.table, "comparison_table.csv"),
        ("Every cell", inputs.rows, "baseline_comparison.csv"),
    ]
    return page_of(
        PageInputs(
            title=inputs.title,
            about=_ABOUT,
            summary=inputs.summary,
            notes=inputs.notes,
            sections=[figures_section(figures), tables_section(tables)],
            refused=inputs.failed,
            refused_called="cell",
            config=inputs.config,
            env=inputs.env,
        )
    )


def comparison_blocks(rows: Sequence[Row]) -> list[tuple[str, list[Block]]]:
    """The figures of a comparison with their values, a tab a measure: by method, and over the batch size if it varies.

    Args:
        rows: of `baseline_comparison.csv`. A measure that no run has is left out.
    """
    table = comparison_table(rows)
    methods, sizes = (list(dict.fromkeys(row[name] for row in table)) for name in ("method", "batch_size"))
    counts = sorted({int(row["seeds"]) for row in table})
    draws = f"{counts[0]} to {counts[-1]} draws" if len(counts) > 1 else f"{counts[0]} draw{'s' * (counts[0] > 1)}"
    told = f" Mean of {draws}" + (", with the 95% interval over them." if counts[-1] > 1 else ".")
    panels: list[tuple[str, list[Block]]] = []
    for measure in MEASURES:
        points = {(row["method"], row["batch_size"]): _point(row, measure, rows) for row in table}
        lines = [
            Line(
                _edits(size),
                [
                    replace(points[method, size], x=float(place))
                    for place, method in enumerate(methods)
                    if (method, size) in points
                ],
            )
            for size in sorted(sizes)
        ]
        if not has_numbers(lines):
            continue
        bars = Bars(
            title=TITLES[measure],
            names=methods,
            row_title="method",
            value_title=measure,
            lines=lines,
            percent=True,
            value_range=_ALL,
            each="single draws",
        )
        if len(sizes) == 1:
            panels.append((measure, [bars]))
            continue
        curves = [
            Line(method, [points[method, size] for size in sorted(sizes) if (method, size) in points], dash=place // 7)
            for place, method in enumerate(methods)
        ]
        curve = Chart(
            title=f"{measure.capitalize()} over the batch size",
            x_title="edits in a batch",
            y_title=measure,
            lines=[line if has_numbers([line]) else replace(line, name=f"{line.name} (n/a)") for line in curves],
            x_axis="log2",
            x_ticks=[float(size) for size in sorted(sizes)],
            y_percent=True,
            y_range=_ALL,
            each="single draws",
        )
        panels.append((measure, [bars, curve]))
    return [(_CAPTION + told, [Tabs(label="Measures", panels=panels)])] if panels else []


def _point(mean: Row, measure: str, rows: Sequence[Row]) -> Point:
    """The mean of a method at a batch size, with what it is the mean of."""
    which = (mean["method"], mean["batch_size"])
    single = [
        number(row.get(measure, "")) for row in rows if (str(row["method"]), int(number(row["batch_size"]))) == which
    ]
    point = Point.of(mean, "batch_size", measure)
    return replace(point, each=single) if len(single) > 1 else point


def _edits(size: int) -> str:
    return f"{size} edit{'s' * (size > 1)} in a batch"


def shown_table(rows: Sequence[Row]) -> Table:
    """The rows of `comparison_table` for the terminal: means, and for the composite its interval; the file has all."""
    table = Table(title="Means over draws, %; composite with 95% interval", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True, min_width=max((len(str(row["method"])) for row in rows), default=6))
    table.add_column("edits", justify="right", no_wrap=True, min_width=5)
    for name in (*MEASURES, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last is not None and row["method"] != last:
            table.add_section()
        last = row["method"]
        cells = [Text(_share(row, name, name == MEASURES[-1])) for name in MEASURES]
        seconds = number(row["seconds"])
        table.add_row(
            Text(str(row["method"])), str(row["batch_size"]), *cells, "-" if math.isnan(seconds) else f"{seconds:.2f}"
        )
    return table


def _share(row: Row, name: str, interval: bool) -> str:
    value, low, high = (number(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "-"
    told = f"{100 * value:.1f}"
    return told if math.isnan(low) or not interval else f"{told} [{100 * low:.0f}, {100 * high:.0f}]"
