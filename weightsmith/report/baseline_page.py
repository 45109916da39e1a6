"""The report of `weightsmith baseline`: how the network was trained, and what it says of images that it has not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.report.classes import telling_classes
from weightsmith.report.parts import Block, Line, Point, TableBlock, Tabs, Words, confusion_tabs
from weightsmith.report.parts.bars import Bars
from weightsmith.report.parts.blocks import MOST_ROWS
from weightsmith.report.parts.chart import has_numbers
from weightsmith.report.render import PageInputs, PageSection, page_of, tables_section
from weightsmith.report.training import training_charts, training_summary
from weightsmith.report.words import Row, number, part_title, percent

_ABOUT = (
    "A baseline: an image classifier trained on the training part and chosen on the validation part. The test part is read "
    "once, at the end."
)
_MEASURES = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
}
CLASSES = "baseline_class_metrics.csv"
"""The file that has the scores of every class."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BaselineInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page; notes: what a reader must know to judge the numbers.
        training_rows: of `baseline_training_history.csv`; metric_rows: of `baseline_metrics.csv`.
        class_rows: of `baseline_class_metrics.csv`, in the order of the labels.
        confusions: part → (classes, classes) counts, rows are the true classes; class_names: by label.
        split_rows: of `data_split_info.csv`; manifest: of its parts.
        config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    notes: Sequence[str] = ()
    training_rows: Sequence[Row] = ()
    metric_rows: Sequence[Row] = ()
    class_rows: Sequence[Row] = ()
    confusions: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    split_rows: Sequence[Row] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_baseline(inputs: BaselineInputs) -> str:
    """The page as text."""
    training: list[Block] = []
    if inputs.training_rows:
        training = [Words(sentences=[training_summary(inputs.training_rows)]), *training_charts(inputs.training_rows)]
    return page_of(
        PageInputs(
            title=inputs.title,
            about=_ABOUT,
            summary=_summary(inputs.metric_rows),
            notes=inputs.notes,
            sections=[
                PageSection("training", "Training", training),
                PageSection("classes", "Accuracy by class", _classes(inputs), link="Classes"),
                PageSection("confusion", "Which classes are taken for which", _confusions(inputs), _HOW, "Confusion"),
                tables_section(
                    [
                        ("Scores by part", _scores(inputs.metric_rows), "baseline_metrics.csv"),
                        ("Images by class and part", _split(inputs.split_rows), "data_split_info.csv"),
                        ("Which images each part holds", _parts(inputs.manifest), "data_split.json"),
                    ]
                ),
            ],
            config=inputs.config,
            env=inputs.env,
        )
    )


_HOW = ["Each row is a true class, each column the class that the model gives; the diagonal is right."]


def _summary(rows: Sequence[Row]) -> list[str]:
    """A sentence a part, the test part first, for it is what counts."""
    found = []
    for part in _parts_of(rows):
        mine = {str(row["metric"]): row for row in rows if row["part"] == part}
        accuracy, f1 = mine["accuracy"], mine.get("macro_f1")
        told = f"{part_title(part).capitalize()}: {_share(accuracy)} of {int(number(accuracy['n'])):,} images are right"
        found.append(told + (f", macro F1 {_share(f1)}." if f1 is not None else "."))
    return found


def _classes(inputs: BaselineInputs) -> list[Block]:
    """A tab a part: the accuracy on each class, and its other scores; of very many classes those with most errors."""
    panels: list[tuple[str, Sequence[Block]]] = []
    for part in list(inputs.confusions)[::-1]:
        kept = telling_classes(inputs.confusions[part], [], MOST_ROWS)
        mine = [row for row in inputs.class_rows if row["part"] == part]
        rows, left_out = [mine[label] for label in kept], len(mine) - len(kept)
        lines = [Line("", [Point.of({**row, "at": at}, "at", "recall", _images(row)) for at, row in enumerate(rows)])]
        blocks: list[Block] = []
        if has_numbers(lines):
            blocks.append(
                Bars(
                    title=f"Accuracy by class, {part_title(part)}",
                    names=[str(row["class"]) for row in rows],
                    row_title="class",
                    value_title="accuracy",
                    lines=lines,
                    filled=True,
                    percent=True,
                    value_range=(0.0, 1.0),
                    caption="The share of the images of a class that are right, its recall. The thin line is the 95% interval.",
                    has_table=False,
                )
            )
        blocks.append(TableBlock(title=f"Scores by class, {part_title(part)}", rows=[_class(row) for row in rows]))
        if left_out:
            told = f"The {len(rows)} of {len(mine):,} classes with most errors; {CLASSES} has all of them."
            blocks.append(Words(sentences=[told]))
        panels.append((part_title(part).capitalize(), blocks))
    return [Tabs(label="Parts", panels=panels)] if panels else []


def _confusions(inputs: BaselineInputs) -> list[Block]:
    """A tab a part, with its matrix."""
    panels = [
        panel
        for part, counts in list(inputs.confusions.items())[::-1]
        for panel in confusion_tabs("", counts, {}, inputs.class_names, part_title(part).capitalize()).panels
    ]
    return [Tabs(label="Confusion matrices by part", panels=panels)] if panels else []


def _scores(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A line a part, a column a measure."""
    return [
        {
            "part": part_title(part),
            **{
                _MEASURES.get(str(row["metric"]), str(row["metric"])): _share(row)
                for row in rows
                if row["part"] == part
            },
            "images": next(f"{int(number(row['n'])):,}" for row in rows if row["part"] == part),
        }
        for part in _parts_of(rows)
    ]


def _class(row: Row) -> dict[str, str]:
    return {
        "class": str(row["class"]),
        "images": _images(row).split()[0],
        "accuracy (recall)": _share(row, "recall"),
        "precision": _share(row, "precision"),
        "F1": _share(row, "f1"),
    }


def _images(row: Row) -> str:
    count = int(number(row["n"]))
    return f"{count:,} image{'' if count == 1 else 's'}"


def _split(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A line a class, a column a part, the sums first."""
    found: dict[str, dict[str, str]] = {"all": {"class": "all classes"}}
    for row in rows:
        label = str(row["class"])
        line = found.setdefault(label, {"class": str(row["name"])})
        line[part_title(str(row["part"]))] = f"{int(number(row['count']))}"
    return list(found.values()) if rows else []


def _parts_of(rows: Sequence[Row]) -> list[str]:
    """The parts, the test part first."""
    return list(dict.fromkeys(str(row["part"]) for row in rows))[::-1]


def _parts(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "part": part_title(name),
            "images": str(entry.get("size", "")),
            "overlap with held-out": str(entry.get("overlap_with_held_out", "")),
            "SHA-256 of the image positions": str(entry.get("sha256", "")),
        }
        for name, entry in manifest.items()
    ]


def _share(row: Row, name: str = "") -> str:
    """A share with its interval, of the columns of a name, or of value."""
    columns = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    value, low, high = (number(row.get(column, "")) for column in columns)
    told = percent(value)
    return told if low != low else f"{told} ({100 * low:.1f} to {100 * high:.1f})"
