"""A comparison of editing methods as one HTML page and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.report.comparison import MEASURES
from weightsmith.report.render import PageInputs, figures_section, page_of, tables_section
from weightsmith.report.words import Row, number

_ABOUT = (
    "Editing methods side by side: each point is the mean over draws of requests, the same draws for every method, with "
    "Student's 95% interval over them."
)
_CAPTIONS = {
    "efficacy_success_by_method": "Efficacy by method and batch size.",
    "paraphrase_success_by_method": "Paraphrases (of images: augmented views) by method and batch size.",
    "neighborhood_specificity_by_method": "Neighbourhood (of images: locality) by method and batch size.",
    "composite_score_by_method": "Composite score by method and batch size.",
    "composite_score_by_batch_size": "Composite score over the batch size.",
}


@dataclass(frozen=True, eq=False)
class ComparisonInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        summary: sentences at the top; notes: what a reader must know to judge the numbers.
        figures: name and figure.
        table: the rows of `comparison_table`; rows: those of `baseline_comparison.csv`.
        failed: cells that could not be measured, and why.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, Figure]] = ()
    table: Sequence[Row] = ()
    rows: Sequence[Row] = ()
    failed: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_comparison(inputs: ComparisonInputs) -> str:
    """The page as text."""
    figures = [(_CAPTIONS.get(name, name.replace("_", " ")), figure) for name, figure in inputs.figures]
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
