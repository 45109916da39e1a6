"""The report of a run as one HTML page that needs nothing but itself: no network, no font, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report.headline import HEADLINE, SCORES, ClassScores, blocks, class_scores, verdicts
from weightsmith.report.parts import Cards, Line, Point, Shot, Tabs, Words, confusion_tabs
from weightsmith.report.parts.bars import Bars
from weightsmith.report.parts.blocks import MOST_ROWS, Block
from weightsmith.report.parts.cards import BUDGET, fitting, telling
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.pictures import image_uri, is_small
from weightsmith.report.plots import effects_title
from weightsmith.report.render import environment
from weightsmith.report.training import training_charts, training_summary
from weightsmith.report.words import Row, class_name, flat, layer_labels, metric_title, number, part_title

_MOST_CHANGED = 5
"""Cells named under a confusion matrix, for those who cannot see it."""

_VERDICTS = {"repaired": ("wrong before, right now", True), "broken": ("right before, wrong now", False)}


@dataclass(frozen=True, eq=False)
class EditedBatch:
    """The images that one method edited.

    Attributes:
        method: its name.
        layers: blocks it changed, counted from 0; none when it changed the classifier.
        rows: sample, class_before, target, class_after, residual_norm, update_norm, layers, success; one an image.
            Classes are labels or names; values may be text.
        images: (n, channels, height, width) uint8, in the order of the rows; None shows the cards without pictures.
        before, after: (n, classes) class probabilities in the order of the rows; None where they are not known.
    """

    method: str
    layers: Sequence[int] | None
    rows: Sequence[Row]
    images: np.ndarray | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None

    def __post_init__(self) -> None:
        for given, called in ((self.images, "images"), (self.before, "probabilities"), (self.after, "probabilities")):
            if given is not None and len(given) != len(self.rows):
                raise WeightsmithError(
                    f"the edited {called} of {self.method} are {len(given)} for {len(self.rows)} rows: give one a row"
                )


@dataclass(frozen=True, eq=False)
class ChangedImages:
    """Images that nothing before had seen, and whose answer a method changed.

    Attributes:
        method: its name; part: of the data; kind: "repaired" or "broken".
        total: how many there are; the arrays may hold fewer.
        names: of the images; labels: (n,) the right classes; images: (n, channels, height, width) uint8.
        before, after: (n, classes) class probabilities.
    """

    method: str
    part: str
    kind: str
    total: int
    names: Sequence[str]
    labels: np.ndarray
    images: np.ndarray
    before: np.ndarray
    after: np.ndarray


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
        changed: images that were repaired and broken, of each method and part.
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
    changed: Sequence[ChangedImages] = ()
    evaluation_rows: Sequence[Row] = ()
    confusions: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]] = field(default_factory=dict)
    class_names: Sequence[str] = ()


def build(inputs: ReportInputs) -> str:
    """The page as text."""
    headline = blocks(inputs.evaluation_rows)
    measured = {(measure.name, measure.column) for block in headline for measure, _ in block.lines}
    batches = [batch for batch in inputs.edits if batch.rows]
    share = BUDGET // max(len(batches) + sum(bool(one.names) for one in inputs.changed), 1)
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
        "edits": _edits(batches, inputs.class_names, share),
        "changed": _changed(inputs.changed, inputs.class_names, share),
        "confusions": [_confusion(part, *pair, inputs.class_names) for part, pair in inputs.confusions.items()],
        "class_scores": [_most_telling(found) for found in class_scores(inputs.evaluation_rows)],
        "scores": SCORES,
        "config": flat(inputs.config),
        "env": flat(inputs.env),
    }
    return environment().get_template("page.html.j2").render(context)


def _split(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Counts with a line a class and a column a part."""
    if not rows:
        return None
    parts = list(dict.fromkeys(str(row["part"]) for row in rows))
    cells = {(str(row["class"]), str(row["part"])): row for row in rows}
    names = {str(row["class"]): str(row["name"]) for row in rows if str(row["class"]) != "all"}
    shown = dict(list(names.items())[: MOST_ROWS + 20])
    return {
        "parts": parts,
        "lines": [(name, [cells.get((label, part)) for part in parts]) for label, name in shown.items()],
        "totals": [cells.get(("all", part)) for part in parts],
        "left_out": len(names) - len(shown),
        "classes": len(names),
    }


def _hashes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = manifest.get("parts", manifest)
    return [{"name": name, **entry} for name, entry in parts.items() if isinstance(entry, Mapping)]


def _training(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    return {"summary": training_summary(rows), "charts": training_charts(rows)}


def _layers(effects: Effects | None) -> dict[str, Any] | None:
    if effects is None:
        return None
    rows = effects.table()
    labels = layer_labels([row["layer"] for row in rows], [row["site"] for row in rows])
    return {
        "title": effects_title(effects),
        "bars": layer_importance_bars(effects),
        "rows": [{**row, "label": label} for row, label in zip(rows, labels, strict=True)],
    }


def layer_importance_bars(effects: Effects) -> Bars | None:
    """`layer_importance` with its values: the mean effect of each layer, its interval and rank; None without numbers."""
    rows = effects.table()
    labels = layer_labels([row["layer"] for row in rows], [row["site"] for row in rows])
    by_number = all(label.isdigit() for label in labels)
    points = [
        Point(float(place), row["mean"], row["low"], row["high"], f"rank {row['rank']}")
        for place, row in enumerate(rows)
    ]
    lines = [Line("", points)]
    if not has_numbers(lines):
        return None
    return Bars(
        title=effects_title(effects),
        names=[f"layer {label}" for label in labels] if by_number else labels,
        row_title="layer, counted from 0" if by_number else "place in the network",
        value_title=f"mean effect ({metric_title(effects.metric)})",
        lines=lines,
        filled=True,
        caption="The longer the bar, the more of the effect comes from that layer. The thin line is the 95% interval: where "
        "two of them overlap widely, the order of the two layers is not certain.",
        has_table=False,
    )


def _edits(batches: Sequence[EditedBatch], class_names: Sequence[str], share: int) -> Tabs | None:
    """A tab a method, with its cards; those whose pictures would make the page too heavy are counted instead."""
    panels = []
    for batch in batches:
        right = sum(_succeeded(row) for row in batch.rows)
        layers = ", ".join(str(layer) for layer in batch.layers or ())
        told = f"Changed layers, counted from 0: {layers}." if layers else "Changed the classifier only."
        size = number(batch.rows[0].get("update_norm", ""))
        if size == size:
            told += f" Size of the change (norm of the update): {size:.4g}."
        shots = fitting([_edited_shot(batch, index, class_names) for index in range(len(batch.rows))], share)
        cards = Cards(shots=shots, total=len(batch.rows), file="the edit log", called="edited image")
        panels.append((f"{batch.method}: {right} of {len(batch.rows)} corrected", [Words(sentences=[told]), cards]))
    return Tabs(label="Edited images by method", panels=panels) if panels else None


def _edited_shot(batch: EditedBatch, index: int, class_names: Sequence[str]) -> Shot:
    row = batch.rows[index]
    success, residual = _succeeded(row), number(row.get("residual_norm", ""))
    wanted = number(row.get("target", ""))
    known = batch.before is not None and batch.after is not None and wanted == wanted
    names = list(class_names) or [str(label) for label in range(0 if batch.before is None else batch.before.shape[1])]
    return Shot(
        name=str(row.get("sample", index)),
        **_pixels(batch.images, index),
        verdict="corrected" if success else "not corrected",
        good=success,
        facts=[
            (words, class_name(row.get(key, ""), class_names))
            for words, key in (("before", "class_before"), ("wanted", "target"), ("after", "class_after"))
        ],
        classes=telling(names, batch.before[index], batch.after[index], int(wanted))  # type: ignore[index]
        if known
        else (),
        more=[f"residual norm {residual:.3g}"] if residual == residual else [],
    )


def _pixels(images: np.ndarray | None, index: int) -> dict[str, Any]:
    if images is None:
        return {"uri": None, "small": False}
    return {"uri": image_uri(images[index]), "small": is_small(images[index])}


def _changed(changed: Sequence[ChangedImages], class_names: Sequence[str], share: int) -> list[tuple[str, Tabs]]:
    """Part and its tabs: what was repaired and what was broken, a tab each."""
    parts = dict.fromkeys(one.part for one in changed)
    return [
        (
            part,
            Tabs(
                label=f"Images whose answer changed, {part_title(part)}",
                panels=[_changed_panel(one, class_names, share) for one in changed if one.part == part],
            ),
        )
        for part in parts
    ]


def _changed_panel(one: ChangedImages, class_names: Sequence[str], share: int) -> tuple[str, Sequence[Block]]:
    verdict, good = _VERDICTS[one.kind]
    title = f"{one.method}: {one.total:,} {one.kind}"
    if not one.total:
        return title, [Words(sentences=[f"No image is {verdict.replace(',', ' and')}."])]
    names = list(class_names) or [str(label) for label in range(one.before.shape[1])]
    shots = []
    for index, name in enumerate(one.names):
        label, before, after = int(one.labels[index]), one.before[index], one.after[index]
        given = [("is", label), ("before", int(before.argmax())), ("after", int(after.argmax()))]
        shots.append(
            Shot(
                name=name,
                **_pixels(one.images, index),
                verdict=one.kind,
                good=good,
                facts=[(words, names[which]) for words, which in given],
                classes=telling(names, before, after, label),
            )
        )
    shown = fitting(shots, share)
    return title, [Cards(shots=shown, total=one.total, file="predictions.csv", called=f"{one.kind} image")]


def _succeeded(row: Row) -> bool:
    """Whether an edit reached its target; a row of a CSV file has the word for it."""
    return str(row.get("success", "")).lower() in ("true", "1")


def _most_telling(found: ClassScores) -> tuple[ClassScores, int]:
    """The classes whose scores changed most, in their order, and how many are left out."""
    if len(found.classes) <= MOST_ROWS:
        return found, 0

    def moved(name: str) -> float:
        changes = (abs(after.value - before.value) for before, after in found.classes[name].values())
        return sum(change for change in changes if change == change)

    kept = set(sorted(found.classes, key=moved, reverse=True)[:MOST_ROWS])
    classes = {name: scores for name, scores in found.classes.items() if name in kept}
    return ClassScores(found.part, found.method, classes), len(found.classes) - len(classes)


def _confusion(
    part: str, before: np.ndarray, after: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, Any]:
    names = list(class_names) or [str(label) for label in range(len(before))]
    titled = {f"after {method}": counts for method, counts in after.items()}
    return {
        "part": part,
        "tabs": confusion_tabs(f"Confusion matrices, {part_title(part)}", before, titled, names),
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
