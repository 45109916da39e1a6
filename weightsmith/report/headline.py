"""The rows of `evaluation_report.csv` put in the order in which people read them; page, terminal and card share it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from weightsmith.measure import Interval
from weightsmith.report.words import Row, bounds, number, part_title, percent

SCORES = ("precision", "recall", "f1")
"""The measures that are given for each class."""


@dataclass(frozen=True)
class Measure:
    """A line of the headline table.

    Attributes:
        name: the measure in the file.
        column: "before" or "after".
        label: what people call it.
        meaning: one plain sentence.
        is_change: a difference, shown with its sign and in percentage points.
    """

    name: str
    column: str
    label: str
    meaning: str
    is_change: bool = False


HEADLINE = (
    Measure("accuracy", "before", "accuracy before", "Share of these images that the unedited model gets right."),
    Measure("accuracy", "after", "accuracy after", "Share of the same images that the edited model gets right."),
    Measure("efficacy", "after", "efficacy", "Share of the edited images that now get the wanted class."),
    Measure(
        "generalisation",
        "after",
        "generalisation",
        "Share of altered views of the edited images (shifted or turned, for instance) that now get the wanted class.",
    ),
    Measure("locality", "after", "locality (kept)", "Share of the images that were right before and still are."),
    Measure("repaired", "after", "repaired", "Share of the images that were wrong before and are right now."),
    Measure(
        "net_accuracy_change",
        "after",
        "net change in accuracy",
        "Accuracy after minus accuracy before, in percentage points: what was repaired less what was broken.",
        is_change=True,
    ),
)
"""The lines of the headline table, in order."""


@dataclass(frozen=True)
class Block:
    """The headline of one part.

    Attributes:
        part: name of the part.
        methods: one column each.
        lines: a measure and its value for each method; None where the file has none. Measures that no method has are
            left out.
    """

    part: str
    methods: tuple[str, ...]
    lines: tuple[tuple[Measure, tuple[Interval | None, ...]], ...]


@dataclass(frozen=True)
class ClassScores:
    """Scores by class of one method on one part: class name → measure → (before, after)."""

    part: str
    method: str
    classes: dict[str, dict[str, tuple[Interval, Interval]]]


def blocks(rows: Iterable[Row]) -> list[Block]:
    """One block a part, every block with a column for every method of the file, both in the order of the file."""
    table: dict[tuple[str, str, str], Row] = {}
    parts: dict[str, None] = {}
    methods: dict[str, None] = {}
    for row in rows:
        if row["class"] != "":
            continue
        part, method = str(row["part"]), str(row["method"])
        parts[part] = methods[method] = None
        table[part, method, str(row["measure"])] = row
    found: list[Block] = []
    for part in parts:
        lines: list[tuple[Measure, tuple[Interval | None, ...]]] = []
        for measure in HEADLINE:
            cells = tuple(
                interval(table[part, method, measure.name], measure.column)
                if (part, method, measure.name) in table
                else None
                for method in methods
            )
            if any(cell is not None for cell in cells):
                lines.append((measure, cells))
        if lines:
            found.append(Block(part, tuple(methods), tuple(lines)))
    return found


def class_scores(rows: Iterable[Row]) -> list[ClassScores]:
    """Precision, recall and F1 of each class, one value a part and method, in the order of the file."""
    found: dict[tuple[str, str], dict[str, dict[str, tuple[Interval, Interval]]]] = {}
    for row in rows:
        if row["class"] == "" or row["measure"] not in SCORES:
            continue
        classes = found.setdefault((str(row["part"]), str(row["method"])), {})
        scores = classes.setdefault(str(row["class"]), {})
        scores[str(row["measure"])] = (interval(row, "before"), interval(row, "after"))
    return [ClassScores(part, method, classes) for (part, method), classes in found.items()]


def verdicts(block: Block) -> list[str]:
    """A sentence a method: what became of the accuracy, and whether chance could explain it."""
    values = {(measure.name, measure.column): cells for measure, cells in block.lines}
    changes = values.get(("net_accuracy_change", "after"), ())
    sentences: list[str] = []
    for index, change in enumerate(changes):
        if change is None or math.isnan(change.value):
            continue
        if change.low > 0:
            meaning = "an improvement that chance does not explain"
        elif change.high < 0:
            meaning = "a loss that chance does not explain"
        else:
            meaning = "no clear change, for the 95% interval includes zero"
        sentences.append(
            f"{block.methods[index]}, {part_title(block.part)}: accuracy changed by {percent(change.value, signed=True)} "
            f"({bounds(change, signed=True)}), {meaning}."
        )
    return sentences


def interval(row: Row, column: str) -> Interval:
    """The value of a row in the column "before" or "after", with its bounds; NaN where the fields are empty."""
    count = number(row.get("n", ""))
    value, low, high = (number(row.get(column + end, "")) for end in ("", "_low", "_high"))
    return Interval(value, low, high, 0 if math.isnan(count) else int(count))
