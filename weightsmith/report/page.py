"""The report of a run as one HTML page that needs nothing but itself: no network, no script, no font of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report import plots
from weightsmith.report.headline import HEADLINE, SCORES, blocks, class_scores, verdicts
from weightsmith.report.pictures import image_uri, is_small
from weightsmith.report.words import Row, bounds, class_name, flat, layer_labels, number, part_title, percent

_PICTURE_BUDGET = 2_000_000
"""Characters of embedded images in a page; with the figures beside them it stays under 4 MB."""

_MOST_CHANGED = 5
"""Cells named under a confusion matrix, for those who cannot see it."""


@dataclass(frozen=True, eq=False)
class EditedBatch:
    """The images that one method edited.

    Attributes:
        method: its name.
        layers: blocks it changed, counted from 0; none when it changed the classifier.
        rows: sample, class_before, target, class_after, residual_norm, update_norm, layers, success; one an image.
            Classes are labels or names; values may be text.
        images: (n, channels, height, width) uint8, in the order of the rows; None shows the cards without pictures.
    """

    method: str
    layers: Sequence[int] | None
    rows: Sequence[Row]
    images: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.images is not None and len(self.images) != len(self.rows):
            raise WeightsmithError(
                f"the edited images of {self.method} are {len(self.images)} for {len(self.rows)} rows: "
                "give one image a row"
            )


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a page is made of. Whatever is missing leaves its section out.

    Attributes:
        title: heading of the page.
        notes: sentences that a reader must know to judge the numbers.
        config: the resolved configuration, nested.
        env: versions, commit, device, threads, seed, hashes.
        split_rows: part, class, name, count, share; the row of class "all" is a part's total.
        manifest: part → source, part, size, sha256, overlap_with_held_out; or the mapping that has it under "parts".
        training_rows: epoch, train_loss, train_accuracy, val_loss, val_accuracy.
        effects: the traced layers, and `effects_note`, a sentence about how they were used.
        edits: the edited images of each method.
        evaluation_rows: the rows of `evaluation_report.csv`.
        confusions: part → (counts before, {method: counts after}).
        class_names: by label.
    """

    title: str
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    split_rows: Sequence[Row] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    training_rows: Sequence[Row] = ()
    effects: Effects | None = None
    effects_note: str = ""
    edits: Sequence[EditedBatch] = ()
    evaluation_rows: Sequence[Row] = ()
    confusions: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]] = field(default_factory=dict)
    class_names: Sequence[str] = ()


def build(inputs: ReportInputs) -> str:
    """The page as text."""
    headline = blocks(inputs.evaluation_rows)
    measured = {(measure.name, measure.column) for block in headline for measure, _ in block.lines}
    context = {
        "title": inputs.title,
        "notes": inputs.notes,
        "headline": headline,
        "verdicts": [sentence for block in headline for sentence in verdicts(block)],
        "meanings": [measure for measure in HEADLINE if (measure.name, measure.column) in measured],
        "split": _split(inputs.split_rows),
        "hashes": _hashes(inputs.manifest),
        "training": _training(inputs.training_rows),
        "layers": _layers(inputs.effects),
        "layers_note": inputs.effects_note,
        "edits": _edits(inputs.edits, inputs.class_names),
        "confusions": [_confusion(part, *pair, inputs.class_names) for part, pair in inputs.confusions.items()],
        "class_scores": class_scores(inputs.evaluation_rows),
        "scores": SCORES,
        "config": flat(inputs.config),
        "env": flat(inputs.env),
    }
    return environment().get_template("page.html.j2").render(context)


@cache
def environment() -> Environment:
    """What renders the templates. Everything from data is escaped: a class or a file may be called `<script>`."""
    loader = PackageLoader("weightsmith.report", "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(percent=percent, bounds=bounds, part_title=part_title, number=number)
    return made


def embedded(figure: Figure, alt: str, pixels_per_inch: int = 80) -> dict[str, object]:
    """A figure with the width below which its text could not be read, so that it scrolls, and the one above which it is
    coarse.
    """
    return {
        "uri": plots.as_data_uri(figure),
        "alt": alt,
        "least_width": round(figure.get_size_inches()[0] * pixels_per_inch),
        "most_width": round(figure.get_size_inches()[0] * 105),
    }


def _split(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Counts with a line a class and a column a part."""
    if not rows:
        return None
    parts = list(dict.fromkeys(str(row["part"]) for row in rows))
    cells = {(str(row["class"]), str(row["part"])): row for row in rows}
    names = {str(row["class"]): str(row["name"]) for row in rows if str(row["class"]) != "all"}
    return {
        "parts": parts,
        "lines": [(name, [cells.get((label, part)) for part in parts]) for label, name in names.items()],
        "totals": [cells.get(("all", part)) for part in parts],
    }


def _hashes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = manifest.get("parts", manifest)
    return [{"name": name, **entry} for name, entry in parts.items() if isinstance(entry, Mapping)]


def _training(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    best = plots.best_epoch(rows)
    summary = f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}."
    if best is not None:
        epoch, share = number(rows[best]["epoch"]), percent(number(rows[best]["val_accuracy"]))
        summary += f" The best validation accuracy, {share}, was reached in epoch {epoch:g}; its weights are kept."
    alt = f"Loss and accuracy by epoch on training and validation images. {summary}"
    return {"figure": embedded(plots.training_curve(rows), alt, 60), "summary": summary, "rows": rows}


def _layers(effects: Effects | None) -> dict[str, Any] | None:
    if effects is None:
        return None
    rows = effects.table()
    labels = layer_labels([row["layer"] for row in rows], [row["site"] for row in rows])
    best = sorted(zip(rows, labels, strict=True), key=lambda pair: pair[0]["rank"])[:3]
    title = plots.effects_title(effects)
    largest = ", ".join(f"{label} ({row['mean']:.3f})" for row, label in best)
    alt = f"Bar chart. {title}. Largest: {largest}."
    return {
        "title": title,
        "figure": embedded(plots.layer_importance(effects), alt, 64),
        "rows": [{**row, "label": label} for row, label in zip(rows, labels, strict=True)],
    }


def _edits(batches: Sequence[EditedBatch], class_names: Sequence[str]) -> list[dict[str, Any]]:
    share = _PICTURE_BUDGET // max(len(batches), 1)
    return [_batch(batch, class_names, share) for batch in batches if batch.rows]


def _batch(batch: EditedBatch, class_names: Sequence[str], budget: int) -> dict[str, Any]:
    """A method's cards; those whose pictures would make the page too heavy are counted instead of shown."""
    cards: list[dict[str, Any]] = []
    for index, row in enumerate(batch.rows):
        card: dict[str, Any] = {
            "sample": str(row.get("sample", index)),
            "classes": [
                (words, class_name(row.get(key, ""), class_names))
                for words, key in (("before", "class_before"), ("wanted", "target"), ("after", "class_after"))
            ],
            "success": _succeeded(row),
            "residual": number(row.get("residual_norm", "")),
            "uri": None,
        }
        if batch.images is not None:
            card |= {"uri": image_uri(batch.images[index]), "small": is_small(batch.images[index])}
        budget -= len(card["uri"] or "") + 800  # about the card's own text
        if budget < 0:
            break
        cards.append(card)
    return {
        "method": batch.method,
        "layers": ", ".join(str(layer) for layer in batch.layers or ()),
        "total": len(batch.rows),
        "right": sum(_succeeded(row) for row in batch.rows),
        "update_norm": number(batch.rows[0].get("update_norm", "")),
        "cards": cards,
        "left_out": len(batch.rows) - len(cards),
    }


def _succeeded(row: Row) -> bool:
    """Whether an edit reached its target; a row of a CSV file has the word for it."""
    return str(row.get("success", "")).lower() in ("true", "1")


def _confusion(
    part: str, before: np.ndarray, after: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    names = list(class_names) or [str(label) for label in range(len(before))]
    total = int(before.sum())
    told = [f"{title}: {int(counts.trace())}" for title, counts in (("before", before), *after.items())]
    alt = f"Confusion matrices, {part_title(part)}. Images on the diagonal (right) of {total}: {', '.join(told)}."
    crowded = len(names) > plots.MOST_CELLS_WITH_TEXT
    return {
        "part": part,
        "figure": embedded(plots.confusion_matrices(before, after, names), alt, 90 if crowded else 60),
        "changes": [
            (method, true, given, int(before[true, given]), int(counts[true, given]))
            for method, counts in after.items()
            for true, given in _most_changed(before, counts)
        ],
        "names": names,
    }


def _most_changed(before: np.ndarray, after: np.ndarray) -> list[tuple[int, int]]:
    places = np.argwhere(after != before)  # few, however many classes there are
    size = np.abs(after[tuple(places.T)].astype(np.int64) - before[tuple(places.T)])
    return [(int(true), int(given)) for true, given in places[np.argsort(-size, kind="stable")[:_MOST_CHANGED]]]
