"""What `weightsmith artificial` shows: accuracy over the coefficient, and the coefficients that validation data chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.errors import WeightsmithError
from weightsmith.report.comparison import share_axis
from weightsmith.report.plots import BLUE, GREY, VERMILION, short, style
from weightsmith.report.words import Row, number, percent

_LOOKS: dict[str, dict[str, Any]] = {
    "raw": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "anchored": {"color": VERMILION, "marker": "s", "linestyle": (0, (5, 2))},
}


def sweep_figure(rows: Sequence[Row], references: Sequence[Row], chance: Mapping[str, float]) -> Figure:
    """Test accuracy over the coefficient: a column an operation, a line of panels a data set, bands are 95% intervals.

    Args:
        rows: operation, mode, coefficient, data, test_accuracy, test_low, test_high.
        references: backbone ("base", "finetuned"), data, test_accuracy: what the untouched backbones reach under its head.
        chance: data set → one in so many classes.

    Raises:
        WeightsmithError: no rows.
    """
    if not rows:
        raise WeightsmithError("there is nothing to show: no coefficient was measured")
    operations, modes, data = (
        list(dict.fromkeys(str(row[name]) for row in rows)) for name in ("operation", "mode", "data")
    )
    with style():
        figure = Figure(figsize=(2.7 * len(operations) + 1.2, 2.6 * len(data) + 0.9), layout="constrained")
        grid = figure.subplots(len(data), len(operations), squeeze=False, sharex=True, sharey=True)
        for line, name in enumerate(data):
            for column, operation in enumerate(operations):
                axes = grid[line, column]
                mine = [row for row in rows if (row["data"], row["operation"]) == (name, operation)]
                for mode in modes:
                    _curve(axes, [row for row in mine if row["mode"] == mode], mode)
                _levels(axes, references, name, chance[name])
                share_axis(axes, "y")
                if line == 0:
                    axes.set_title(operation)
                if line == len(data) - 1:
                    axes.set_xlabel("coefficient")
                if column == 0:
                    axes.set_ylabel(f"{short(name, 24)}\ntest accuracy")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, rows: Sequence[Row], mode: str) -> None:
    found = sorted(rows, key=lambda row: number(row["coefficient"]))
    spots, values, low, high = (
        [number(row[name]) for row in found] for name in ("coefficient", "test_accuracy", "test_low", "test_high")
    )
    look = _LOOKS[mode]
    axes.plot(spots, values, markersize=3.5, linewidth=1.4, label=mode, **look)
    axes.fill_between(spots, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _levels(axes: Axes, references: Sequence[Row], data: str, chance: float) -> None:
    dashes: dict[str, Any] = {"base": (0, (1, 1)), "finetuned": (0, (6, 2))}
    for row in references:
        if row["data"] == data:
            name = str(row["backbone"])
            told = "base as it is" if name == "base" else "fine-tuned as it is"
            axes.axhline(number(row["test_accuracy"]), color="black", linewidth=1.0, linestyle=dashes[name], label=told)
    axes.axhline(chance, color=GREY, linewidth=0.9, label="chance")


def choices(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Of each operation and mode the coefficient of best mean validation accuracy over the data sets, with its test accuracies.

    Of equal ones the smallest coefficient is taken: what changes less.
    """
    found: list[dict[str, object]] = []
    ways = dict.fromkeys((str(row["operation"]), str(row["mode"])) for row in rows)
    for operation, mode in ways:
        mine = [row for row in rows if (row["operation"], row["mode"]) == (operation, mode)]
        scores = {
            value: fmean(number(row["val_accuracy"]) for row in mine if number(row["coefficient"]) == value)
            for value in sorted({number(row["coefficient"]) for row in mine}, key=abs)
        }
        best = max(scores, key=lambda value: scores[value])
        entry: dict[str, object] = {"operation": operation, "mode": mode, "coefficient": best}
        entry["val_accuracy"] = round(scores[best], 6)
        for row in mine:
            if number(row["coefficient"]) == best:
                entry |= {
                    f"test_{row['data']}{end}": row[f"test_{part}"]
                    for end, part in (("", "accuracy"), ("_low", "low"), ("_high", "high"))
                }
        found.append(entry)
    return found


def best_choice(chosen: Sequence[Row]) -> Row:
    """The operation, mode and coefficient of best validation accuracy; of equal ones the smallest coefficient."""
    return min(chosen, key=lambda row: (-number(row["val_accuracy"]), abs(number(row["coefficient"]))))


def choice_table(chosen: Sequence[Row], references: Sequence[Row]) -> Table:
    """The best choice and the untouched backbones, for the terminal: test accuracies with their 95% intervals.

    Test data speak once, of the choice that validation data made; `sweep.csv` has every other point.
    """
    data = list(dict.fromkeys(str(row["data"]) for row in references))
    table = Table(title="Test accuracy, each data set under its own head", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("backbone", no_wrap=True)
    for name in data:
        table.add_column(Text(short(name, 30)), no_wrap=True)
    for backbone, told in (("base", "base"), ("finetuned", "fine-tuned")):
        mine = {str(row["data"]): row for row in references if row["backbone"] == backbone}
        table.add_row(told, *(_told(mine[name], "test_accuracy", "test_low", "test_high") for name in data))
    best = best_choice(chosen)
    name = f"{best['operation']}, {best['mode']}, at {number(best['coefficient']):g}"
    table.add_row(name, *(_told(best, f"test_{one}", f"test_{one}_low", f"test_{one}_high") for one in data))
    return table


def _told(row: Row, value: str, low: str, high: str) -> str:
    return f"{percent(number(row[value]))} ({100 * number(row[low]):.1f} to {100 * number(row[high]):.1f})"
