"""Confusion matrices: before, and after each method with the cells that changed marked, every count told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from weightsmith.report.classes import telling_classes
from weightsmith.report.parts.blocks import Tabs
from weightsmith.report.parts.heatmap import Cell, HeatMap

MOST_CLASSES = 50
"""Classes that a matrix of a page shows."""

MOST_CLASSES_WITH_TEXT = 15
"""Classes up to which the counts stand in the cells."""


def confusion_tabs(
    label: str,
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    first: str = "before",
    file: str = "confusion_matrix.csv",
) -> Tabs:
    """A tab for `before`, and one for each method with what changed.

    Colours are shares of the true class on the scale of their square root, so that errors are seen beside what is right.

    Args:
        before: (classes, classes) counts, rows are the true classes; after: title → counts of another model.
        class_names: by label; first: the title of the first tab; file: what has the classes that are left out.
    """
    names = list(class_names) or [str(label) for label in range(len(before))]
    kept = telling_classes(before, list(after.values()), MOST_CLASSES)
    note = ""
    if len(kept) < len(names):
        note = (
            f"{len(kept)} of {len(names):,} classes: those of which most images changed class, or are wrong. {file} has "
            "the others."
        )
    panels = [(first, [_matrix(first, before, None, names, kept, note, first)])]
    panels += [(title, [_matrix(title, table, before, names, kept, note, first)]) for title, table in after.items()]
    return Tabs(label=label, panels=panels)


def _matrix(
    title: str,
    counts: np.ndarray,
    reference: np.ndarray | None,
    names: Sequence[str],
    kept: Sequence[int],
    note: str,
    first: str,
) -> HeatMap:
    total, right = int(counts.sum()), int(counts.trace())
    told = f"{title}: {100 * right / total:.1f}% of {total:,} images right" if total else f"{title}: no images"
    changed = 0 if reference is None else int((counts != reference).sum())
    totals = counts.sum(1)
    with_text = len(kept) <= MOST_CLASSES_WITH_TEXT
    cells = [
        [_cell(row, column, counts, reference, int(totals[row]), with_text, first) for column in kept] for row in kept
    ]
    notes = [note] if note else []
    if reference is not None:
        notes.append(f"{changed} cells differ from {first}." if changed else f"No count differs from {first}.")
    return HeatMap(
        title=told,
        rows=[names[label] for label in kept],
        columns=[names[label] for label in kept],
        row_title="true class",
        column_title="class given",
        cells=cells,
        empty="no images",
        ends=("0%", "100% of the true class"),
        signed=False,
        mark=f"count differs from {first}" if changed else "",
        notes=notes,
    )


def _cell(
    row: int,
    column: int,
    counts: np.ndarray,
    reference: np.ndarray | None,
    total: int,
    with_text: bool,
    first: str,
) -> Cell | None:
    count = int(counts[row, column])
    change = 0 if reference is None else count - int(reference[row, column])
    if count == 0 and change == 0:
        return None
    share = count / total if total else 0.0
    told = f"{count:,} of {total:,} images"
    if change:
        told += f", {count - change:,} {first} ({change:+,})".replace("-", "−")
    text = f"{count:,}" + (f" {change:+,}".replace("-", "−") if change else "") if with_text else ""
    return Cell(told, math.sqrt(share), text, marked=change != 0)
