"""The training of a network as a page has it: loss and accuracy by epoch, and which epoch was kept."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.report.parts import Block, Chart, Line, Point
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.plots import best_epoch
from weightsmith.report.words import Row, number, percent

_PARTS = {"train": "training", "val": "validation"}
_FEW = 12
"""Epochs up to which each has a tick."""


def training_summary(rows: Sequence[Row]) -> str:
    """How many epochs there were, and which was the best."""
    told = f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}."
    best = best_epoch(rows)
    if best is None:
        return told
    epoch, share = number(rows[best]["epoch"]), percent(number(rows[best]["val_accuracy"]))
    return f"{told} The best validation accuracy, {share}, was reached in epoch {epoch:g}; its weights are kept."


def training_charts(rows: Sequence[Row], of: str = "") -> list[Block]:
    """Loss and accuracy by epoch with a ring around the epoch that was kept; those of them that were measured.

    Args:
        rows: epoch, train_loss, train_accuracy, val_loss, val_accuracy; numbers or numeric text.
        of: what was trained, for the titles.
    """
    found: list[Block] = []
    for measure in ("loss", "accuracy"):
        lines = training_lines(rows, measure)
        if has_numbers(lines):
            title = f"{measure.capitalize()} by epoch" + (f" of {of}" if of else "")
            found.append(
                Chart(
                    title=title,
                    x_title="epoch",
                    y_title=measure,
                    lines=lines,
                    chosen="best validation accuracy, kept",
                    y_percent=measure == "accuracy",
                    x_ticks=[number(row["epoch"]) for row in rows] if len(rows) <= _FEW else (),
                )
            )
    return found


def training_lines(rows: Sequence[Row], measure: str) -> list[Line]:
    """A line a part; of the validation part, the epoch that was kept is the chosen point."""
    best = best_epoch(rows)
    return [
        Line(
            title,
            [
                Point(
                    number(row["epoch"]),
                    number(row.get(f"{part}_{measure}", "")),
                    chosen=part == "val" and place == best,
                )
                for place, row in enumerate(rows)
            ],
            dash=dash,
        )
        for dash, (part, title) in enumerate(_PARTS.items())
    ]
