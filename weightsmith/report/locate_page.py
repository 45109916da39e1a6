"""The report of a `weightsmith locate` run as one HTML page, in the look of the report of a correction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.report.page import embedded, environment
from weightsmith.report.words import Row, flat

MOST_ROWS = 40
"""Rows of a table that a page shows."""

COMMANDS = {
    "trace": "Causal tracing: the input is corrupted, clean activations are put back at one site, and the effect of the "
    "site is how much of the decision that brings back.",
    "patch": "Activation patching: activations at one site come from the run of another input, and the effect of the "
    "site is how far the decision follows.",
    "attribution": "Attribution patching: gradients estimate for every site at once what patching it would do. An "
    "estimate is no measurement until patching confirms it.",
    "astra": "Image attribution as in ASTRA: patches are masked at random, a linear model is fitted to what becomes of "
    "the output, and its weights say how much each patch contributes.",
}
"""What each command does, in a sentence at the head of its page."""

_MOST_REFUSED = 10
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|[-+]?nan|[-+]?inf")


@dataclass(frozen=True, eq=False)
class LocateInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        command: a key of `COMMANDS`.
        summary: sentences at the top.
        config: the resolved configuration, nested.
        env: versions, commit, device, threads, seed, hashes.
        figures: caption and figure.
        tables: title and rows, and the name of the CSV file that has them all if the page should give it.
        refused: samples that were left out, and why.
        notes: sentences that a reader must know to judge the numbers.

    Raises:
        WeightsmithError: an unknown command.
    """

    title: str
    command: str
    summary: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[tuple[str, Figure]] = ()
    tables: Sequence[tuple[str, Sequence[Row]] | tuple[str, Sequence[Row], str]] = ()
    refused: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise WeightsmithError(f"there is no page for {self.command!r}: {did_you_mean(self.command, COMMANDS)}")


def build_locate(inputs: LocateInputs) -> str:
    """The page as text."""
    context = {
        "title": inputs.title,
        "about": COMMANDS[inputs.command],
        "summary": inputs.summary,
        "notes": inputs.notes,
        "figures": [
            {"caption": f"Figure {place}. {caption}", "figure": embedded(figure, alternative_text(caption, figure), 64)}
            for place, (caption, figure) in enumerate(inputs.figures, 1)
        ],
        "tables": [table_of(*table) for table in inputs.tables if table[1]],
        "refused": inputs.refused,
        "many_refused": len(inputs.refused) > _MOST_REFUSED,
        "config": flat(inputs.config),
        "env": flat(inputs.env),
    }
    return environment().get_template("locate.html.j2").render(context)


def alternative_text(caption: str, figure: Figure) -> str:
    """What the figure says of itself, for the caption stands below in any case."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    told = list(dict.fromkeys(" ".join(title.split()) for title in titles if title.strip()))
    return "; ".join(told) or caption


def table_of(title: str, rows: Sequence[Row], file: str = "") -> dict[str, Any]:
    """The first rows as text, without columns that hold nothing, and which columns are numbers."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows[:MOST_ROWS]]) for name in names}
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    left = ""
    if len(rows) > MOST_ROWS:
        left = f"The first {MOST_ROWS} of {len(rows):,} rows; {file or 'the CSV file of this table'} has all of them."
    return {
        "title": title,
        "names": list(columns),
        "numeric": [
            all(_NUMBER.fullmatch(text) or text in ("", "n/a") for text in texts) for texts in columns.values()
        ],
        "lines": list(zip(*columns.values(), strict=True)),
        "left": left,
    }


def _column(values: Sequence[object]) -> list[str]:
    """Cells as text. Numbers that are not whole, be they text, have four digits of the largest, all as many decimals."""
    texts = ["" if value is None else str(value) for value in values]
    real = [
        isinstance(value, float) or (_NUMBER.fullmatch(text) is not None and ("." in text or "n" in text))
        for value, text in zip(values, texts, strict=True)
    ]
    sizes = [abs(float(text)) for text, is_real in zip(texts, real, strict=True) if is_real]
    largest = max((size for size in sizes if math.isfinite(size)), default=0.0)
    decimals = max(3 - math.floor(math.log10(largest)), 0) if largest else 0
    fixed = decimals <= 6 and largest < 1e6
    for place, value in enumerate(values):
        if isinstance(value, bool):
            texts[place] = "yes" if value else "no"
        elif real[place]:
            size = float(texts[place])
            shown = f"{round(size, decimals) + 0.0:.{decimals}f}" if fixed else f"{size:.3e}"  # no minus nought
            texts[place] = "n/a" if math.isnan(size) else shown
    return texts
