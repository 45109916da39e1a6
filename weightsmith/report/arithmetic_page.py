"""Task arithmetic as a page: accuracy over the coefficient with the chosen one marked, and what it was chosen by.

`coefficient_chart` is for every search over coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.report.arithmetic import best_choice
from weightsmith.report.parts import Block, Chart, Level, Line, Point, Tabs, Words
from weightsmith.report.render import PageInputs, PageSection, page_of, tables_section
from weightsmith.report.training import training_charts
from weightsmith.report.words import Row, number, percent

_ABOUT = (
    "Task arithmetic: what fine-tuning changed in the weights, the task vector, is combined with the base in several ways and "
    "by several coefficients, and each data set is judged with its own head."
)
_OPERATIONS = {
    "subtract": "w + λ (f − w): w are the base's weights, f the fine-tuned ones, λ the coefficient. At λ = 1 it is f.",
    "add": "Raw: w + λ (f + w). Anchored: at λ = 1 it is the mean of w and f.",
    "multiply": "Raw: w + λ f w. Anchored: at λ = 1 it is the geometric mean of the sizes of w and f, with the sign of w.",
    "divide": "Raw: w + λ f / w. Anchored: w (f / w) to the power of λ, at λ = 1 it is f.",
}
_BACKBONES = {"base": "base as it is", "finetuned": "fine-tuned as it is"}


def coefficient_chart(
    title: str,
    lines: Mapping[str, Sequence[Row]],
    *,
    coefficient: str = "coefficient",
    value: str = "accuracy",
    low: str = "",
    high: str = "",
    chosen: float | Mapping[str, float] | None = None,
    chosen_by: str = "chosen on validation data",
    levels: Mapping[str, float] | None = None,
    x_title: str = "coefficient",
    y_title: str = "accuracy",
    percent_y: bool = True,
) -> Chart:
    """A measure over the coefficient, a line a way to combine, with rings around what was chosen.

    Args:
        lines: name → rows of a CSV file, values numbers or text; a row whose value is no number is not drawn.
        coefficient, value, low, high: the columns; without bounds no interval is drawn.
        chosen: the chosen coefficient, of all lines or by name; `chosen_by` says what a ring means.
        levels: name → value that lines are seen against, drawn across.
        percent_y: whether the measure is a share.

    Raises:
        WeightsmithError: no number to draw.
    """
    drawn = []
    for place, (name, rows) in enumerate(lines.items()):
        picked = chosen.get(name) if isinstance(chosen, Mapping) else chosen
        points = [
            Point(
                number(row[coefficient]),
                number(row[value]),
                number(row.get(low, "")),
                number(row.get(high, "")),
                chosen=picked is not None and math.isclose(number(row[coefficient]), picked, abs_tol=1e-12),
            )
            for row in sorted(rows, key=lambda row: number(row[coefficient]))
        ]
        drawn.append(Line(name, points, dash=place % 4))
    return Chart(
        title=title,
        x_title=x_title,
        y_title=y_title,
        lines=drawn,
        levels=[Level(name, at) for name, at in (levels or {}).items() if math.isfinite(at)],
        chosen=chosen_by,
        y_percent=percent_y,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ArithmeticInputs:
    """What a page is made of.

    Attributes:
        title: heading of the page.
        sweep: rows of `sweep.csv`; references: of `references.csv`; choices: of `choices.csv`.
        chance: data set → one in so many classes.
        training: which network → rows of its training, empty where it was not trained here.
        notes: what a reader must know; config, env: the resolved configuration, and versions, device and hashes.
    """

    title: str
    sweep: Sequence[Row]
    references: Sequence[Row]
    choices: Sequence[Row]
    chance: Mapping[str, float]
    training: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def build_arithmetic(inputs: ArithmeticInputs) -> str:
    """The page as text. Raises `WeightsmithError` where nothing was measured."""
    if not inputs.sweep:
        raise WeightsmithError("there is nothing to show: no coefficient was measured")
    training = [(which, charts) for which, rows in inputs.training.items() if (charts := training_charts(rows, which))]
    return page_of(
        PageInputs(
            title=inputs.title,
            about=_ABOUT,
            summary=_summary(inputs),
            notes=inputs.notes,
            sections=[
                PageSection("sweep", "Accuracy over the coefficient", [_sweep(inputs)], (_HOW,), "Sweep"),
                PageSection(
                    "training",
                    "Training",
                    [Tabs(label="Networks that were trained", panels=training)] if training else [],
                ),
                tables_section(
                    [
                        (
                            "Coefficients of best validation accuracy, with test accuracies",
                            inputs.choices,
                            "choices.csv",
                        ),
                        ("What the untouched backbones reach", inputs.references, "references.csv"),
                        ("Every operation and coefficient", inputs.sweep, "sweep.csv"),
                    ]
                ),
            ],
            config=inputs.config,
            env=inputs.env,
        )
    )


_HOW = (
    "Curves are test accuracy with 95% intervals; a ring is the coefficient of best mean validation accuracy, which is how a "
    "coefficient may be chosen. Another point of a test curve is no choice: it was seen with the answers at hand."
)


def _sweep(inputs: ArithmeticInputs) -> Tabs:
    """A tab an operation, a chart a data set in each."""
    picked = {(row["operation"], row["mode"]): number(row["coefficient"]) for row in inputs.choices}
    operations, modes, data = (
        list(dict.fromkeys(str(row[name]) for row in inputs.sweep)) for name in ("operation", "mode", "data")
    )
    panels: list[tuple[str, Sequence[Block]]] = []
    for operation in operations:
        charts: list[Block] = [Words(sentences=[_OPERATIONS[operation]])] if operation in _OPERATIONS else []
        for name in data:
            mine = [row for row in inputs.sweep if (row["operation"], row["data"]) == (operation, name)]
            levels = {
                _BACKBONES[str(row["backbone"])]: number(row["test_accuracy"])
                for row in inputs.references
                if row["data"] == name
            }
            charts.append(
                coefficient_chart(
                    f"{operation}, judged on {name}",
                    {mode: found for mode in modes if (found := [row for row in mine if row["mode"] == mode])},
                    value="test_accuracy",
                    low="test_low",
                    high="test_high",
                    chosen={mode: picked[operation, mode] for mode in modes if (operation, mode) in picked},
                    levels={**levels, "chance": inputs.chance[name]},
                    y_title="test accuracy",
                )
            )
        panels.append((operation, charts))
    return Tabs(label="Operations", panels=panels)


def _summary(inputs: ArithmeticInputs) -> list[str]:
    best = best_choice(inputs.choices)
    data = list(dict.fromkeys(str(row["data"]) for row in inputs.references))
    reached = ", ".join(
        f"{percent(number(best[f'test_{name}']))} on {name} "
        f"({100 * number(best[f'test_{name}_low']):.1f} to {100 * number(best[f'test_{name}_high']):.1f})"
        for name in data
    )
    plain = [
        f"{_BACKBONES[backbone].capitalize()}: "
        + ", ".join(
            f"{percent(number(row['test_accuracy']))} on {row['data']}"
            for row in inputs.references
            if row["backbone"] == backbone
        )
        + "."
        for backbone in _BACKBONES
    ]
    return [
        f"Validation chose {best['operation']}, {best['mode']}, at {number(best['coefficient']):g}: test accuracy {reached}.",
        *plain,
    ]
