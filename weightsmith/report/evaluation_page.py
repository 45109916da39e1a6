"""Classifiers side by side as one HTML page and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.evaluate import ConfidenceBin
from weightsmith.report.evaluation import ByClass
from weightsmith.report.evaluation_charts import BATCH_SIZES, front_charts, measure_charts
from weightsmith.report.parts import Block, Words, confusion_tabs
from weightsmith.report.parts.blocks import MOST_ROWS
from weightsmith.report.render import PageInputs, PageSection, figures_section, page_of, tables_section
from weightsmith.report.words import Row, number, percent

_ABOUT = (
    "Image classifiers side by side, on the same held-out images, and in turn on the same machine. Efficiency is accuracy "
    "in percent a millisecond of a batch of 8; calibration error is the expected one over 15 bins of equal width."
)
_FIGURE = (
    "evaluation_results.png, beside this page, has accuracy, confidence, time and size in one figure, for a paper."
)
_ALL_COUNTS = "evaluation_metrics.json"
CLASSES = "class_accuracy.csv"
"""The file that has the accuracy on every class."""

_MOST_MATRICES = 6
"""Models whose confusion matrices a page shows beside the baseline's."""
_SHARES = {
    "accuracy": "top-1", "top5": "top-5", "macro_precision": "macro precision", "macro_recall": "macro recall",
    "macro_f1": "macro F1",
}  # fmt: skip
_SURE = ("confidence", "confidence_when_right", "confidence_when_wrong", "confidence_gap", "overconfidence")


@dataclass(frozen=True, eq=False)
class Section:
    """What a command that ends in an evaluation has to say besides.

    Attributes:
        about: a sentence for the head of the page.
        summary: sentences behind the recommendations; figures: caption, and what is above it, behind the Pareto fronts.
        tables: title, rows, and the name of the CSV file that has them all; they come before the evaluation's own.
    """

    about: str
    summary: Sequence[str] = ()
    figures: Sequence[tuple[str, Sequence[Block]]] = ()
    tables: Sequence[tuple[str, Sequence[Row], str]] = ()


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """What a page is made of. Whatever is empty leaves its section out.

    Attributes:
        title: heading of the page.
        recommendations: which model to use for what, and why.
        summary: sentences on what was measured; notes: what a reader must know to judge the numbers.
        rows: of `evaluation_metrics.csv`; by_class: class name, and each model's accuracy on it.
        bins: model → of how sure it is, how often it is right.
        chosen: what for, and the name of the model that is recommended for it.
        confusions: model → (classes, classes) counts, rows are the true classes; class_names: by label.
        config, env: the resolved configuration, and versions, device and hashes.
        section: what a command has to say besides.
    """

    title: str
    recommendations: Sequence[str]
    rows: Sequence[Row]
    by_class: ByClass = ()
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    section: Section | None = None
    bins: Mapping[str, Sequence[ConfidenceBin]] = field(default_factory=dict)
    chosen: Sequence[tuple[str, str]] = ()
    confusions: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Sequence[str] = ()


def build_evaluation(inputs: EvaluationInputs) -> str:
    """The page as text."""
    more = inputs.section or Section("")
    tables = [
        *more.tables,
        ("Accuracy, with 95% intervals", [_accuracy(row) for row in inputs.rows], ""),
        ("Confidence", [_confidence(row) for row in inputs.rows], ""),
        ("Milliseconds a batch, median and quartiles", [_times(row) for row in inputs.rows], ""),
        ("Size and efficiency", [_costs(row) for row in inputs.rows], ""),
        (_by_class_title(inputs.by_class), _classes(telling(inputs.by_class)), CLASSES),
    ]
    baseline = _baseline(inputs.rows)
    figures = [
        *front_charts(inputs.rows, inputs.chosen),
        *more.figures,
        *measure_charts(inputs.rows, inputs.by_class, baseline, inputs.bins),
    ]
    drawn = figures_section(figures)
    drawn = replace(drawn, blocks=[*drawn.blocks, Words(sentences=[_FIGURE])])
    return page_of(
        PageInputs(
            title=inputs.title,
            about=" ".join(part for part in (more.about, _ABOUT) if part),
            summary=[*inputs.recommendations, *more.summary, *inputs.summary],
            notes=inputs.notes,
            sections=[drawn, _confusions(inputs), tables_section(tables)],
            config=inputs.config,
            env=inputs.env,
        )
    )


def _baseline(rows: Sequence[Row]) -> str:
    return next((str(row["model"]) for row in rows if row["baseline"]), "")


def _confusions(inputs: EvaluationInputs) -> PageSection:
    """The baseline's confusion matrix, and those of the others with what differs from it marked."""
    base = _baseline(inputs.rows)
    blocks: list[Block] = []
    if base in inputs.confusions:
        others = {name: counts for name, counts in inputs.confusions.items() if name != base}
        shown = dict(list(others.items())[:_MOST_MATRICES])
        tabs = confusion_tabs(
            "Confusion matrices by model", inputs.confusions[base], shown, inputs.class_names, base, _ALL_COUNTS
        )
        blocks.append(tabs)
        if len(others) > len(shown):
            told = f"The baseline and the first {len(shown)} of {len(others)} others; {_ALL_COUNTS} has all of them."
            blocks.append(Words(sentences=[told]))
    words = ["Each row is a true class, each column the class that the model gives; the diagonal is right."]
    return PageSection("confusion", "Which classes are taken for which", blocks, words, "Confusion")


def evaluated_table(rows: Sequence[Row]) -> Table:
    """The rows of `evaluation_metrics.csv` for the terminal; the file has all."""
    table = Table(title="Held-out images; difference with 95% interval", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True, min_width=max((len(str(row["model"])) for row in rows), default=5))
    for name in ("accuracy", "points to baseline", "ECE", "ms at 8"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        difference = "baseline" if row["baseline"] else _change(row)
        table.add_row(
            Text(str(row["model"])),
            percent(number(row["accuracy"])),
            difference,
            percent(number(row["calibration_error"])),
            f"{number(row['ms_8']):.2f}",
        )
    return table


def short_count(count: float) -> str:
    """A count in three digits: 1234567 is "1.23 M"."""
    for limit, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{sign}"
    return "n/a" if math.isnan(count) else f"{count:.0f}"


def _accuracy(row: Row) -> dict[str, str]:
    cells = {title: _share(row, name) for name, title in _SHARES.items() if not math.isnan(number(row[name]))}
    difference = "baseline" if row["baseline"] else _points(row, "accuracy_change")
    return {"model": str(row["model"]), "top-1": cells.pop("top-1"), "difference to baseline": difference, **cells}


def _confidence(row: Row) -> dict[str, str]:
    return {
        "model": str(row["model"]),
        **{name: _share(row, name) for name in _SURE},
        "entropy, nats": f"{number(row['entropy']):.3f}",
        "calibration error": percent(number(row["calibration_error"])),
    }


def _times(row: Row) -> dict[str, str]:
    told = {"model": str(row["model"])}
    for size in BATCH_SIZES:
        middle, low, high = (number(row[f"ms_{size}{end}"]) for end in ("", "_q1", "_q3"))
        told[f"batch of {size}"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    ratio, low, high = (number(row[f"time_ratio_8{end}"]) for end in ("", "_low", "_high"))
    if not row["baseline"]:
        bounds = "" if math.isnan(low) else f" ({low:.3f} to {high:.3f})"
        told["of the baseline's at 8, with 95% interval"] = f"{ratio:.3f}{bounds}"
    return told | {"images a second at 64": f"{number(row['images_per_second_64']):,.0f}"}


def _costs(row: Row) -> dict[str, str]:
    return {
        "model": str(row["model"]),
        "parameters": short_count(number(row["parameters"])),
        "MACs an image": short_count(number(row["macs"])),
        "FLOPs an image": short_count(number(row["flops"])),
        "on disk": _bytes(number(row["bytes_on_disk"])),
        "efficiency, %/ms": f"{number(row['efficiency']):.3g}",
        "on the Pareto front": "yes" if row["pareto"] else "no",
    }


def _bytes(count: float) -> str:
    return "n/a" if math.isnan(count) else f"{short_count(count)}B" if count >= 1000 else f"{count:.0f} B"


def telling(by_class: ByClass, most: int = MOST_ROWS) -> ByClass:
    """At most so many classes: those on which models differ by most images, then those with most errors; in their order."""
    if len(by_class) <= most:
        return by_class

    def rank(place: int) -> tuple[float, float]:
        right = [share.value * share.n for share in by_class[place][1].values()]
        images = max(share.n for share in by_class[place][1].values())
        return max(right) - min(right), images - min(right)

    kept = sorted(sorted(range(len(by_class)), key=rank, reverse=True)[:most])
    return [by_class[place] for place in kept]


def _by_class_title(by_class: ByClass) -> str:
    title = "Accuracy by class, with 95% intervals"
    if len(by_class) <= MOST_ROWS:
        return title
    return (
        f"{title}: the {MOST_ROWS} of {len(by_class):,} classes on which models differ most; {CLASSES} has all of them"
    )


def _classes(by_class: ByClass) -> list[dict[str, str]]:
    return [
        {
            "class": name,
            "images": str(next(iter(shares.values())).n),
            **{f"accuracy of {model}": _interval(one.value, one.low, one.high) for model, one in shares.items()},
        }
        for name, shares in by_class
    ]


def _share(row: Row, name: str) -> str:
    return _interval(*(number(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _interval(value: float, low: float, high: float) -> str:
    told = percent(value)
    return told if math.isnan(low) else f"{told} ({_rounded(low)} to {_rounded(high)})"


def _rounded(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"  # no minus nought


def _change(row: Row) -> str:
    value, low, high = (100 * number(row[f"accuracy_change{end}"]) for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _points(row: Row, name: str) -> str:
    value, low, high = (number(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{100 * value:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
