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
            {"caption": f"Figure {place}. {caption}", "figure": embedded(figure, _alt(caption, figure), 64)}
            for place, (caption, figure) in enumerate(inputs.figures, 1)
        ],
        "tables": [_table(*table) for table in inputs.tables if table[1]],
        "refused": inputs.refused,
        "many_refused": len(inputs.refused) > _MOST_REFUSED,
        "config": flat(inputs.config),
        "env": flat(inputs.env),
    }
    return environment().get_template("locate.html.j2").render(context)


def _alt(caption: str, figure: Figure) -> str:
    """What the figure says of itself, for the caption stands below in any case."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    told = list(dict.fromkeys(" ".join(title.split()) for title in titles if title.strip()))
    return "; ".join(told) or caption


def _table(title: str, rows: Sequence[Row], file: str = "") -> dict[str, Any]:
    """The first rows as text, and which columns are numbers."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_text(row.get(name)) for name in names] for row in rows[:MOST_ROWS]]
    numeric = [
        all(_NUMBER.fullmatch(cell) or cell in ("", "n/a") for cell in column) for column in zip(*lines, strict=True)
    ]
    left = ""
    if len(rows) > MOST_ROWS:
        left = f"The first {MOST_ROWS} of {len(rows):,} rows; {file or 'the CSV file of this table'} has all of them."
    return {"title": title, "names": names, "numeric": numeric, "lines": lines, "left": left}


def _text(value: object) -> str:
    """A cell: four significant digits of what is no whole number, be it a number or the text of one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if isinstance(value, float) or (_NUMBER.fullmatch(text) and ("." in text or "n" in text)):
        return "n/a" if math.isnan(float(text)) else f"{float(text):.4g}"
    return text
