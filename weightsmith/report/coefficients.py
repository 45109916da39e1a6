"""What a search for a merge's coefficient shows: accuracy over the coefficient, and the chosen backbone beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.errors import WeightsmithError
from weightsmith.report.comparison import share_axis
from weightsmith.report.plots import BLUE, GREY, VERMILION, short, style
from weightsmith.report.words import Row, number, percent

_BACKBONES = {"base": "base", "own": "each its own model", "merged": "merged"}


def coefficient_figure(rows: Sequence[Row]) -> Figure:
    """Validation accuracy over the coefficient, a panel a data set with bands of 95%, and the chosen coefficient marked.

    Args:
        rows: coefficient, data, role ("task" or "control"), val_accuracy, val_low, val_high, reference, chosen.

    Raises:
        WeightsmithError: no rows.
    """
    if not rows:
        raise WeightsmithError("there is nothing to show: no coefficient was measured")
    data = list(dict.fromkeys((str(row["data"]), str(row["role"])) for row in rows))
    chosen = next(number(row["coefficient"]) for row in rows if str(row["chosen"]) == "True")
    across = min(len(data), 4)
    down = -(-len(data) // across)
    with style():
        figure = Figure(figsize=(2.7 * across + 0.8, 2.5 * down + 0.9), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for place, (name, role) in enumerate(data):
            axes = grid.flat[place]
            mine = sorted((row for row in rows if row["data"] == name), key=lambda row: number(row["coefficient"]))
            spots, values, low, high = (
                [number(row[key]) for row in mine] for key in ("coefficient", "val_accuracy", "val_low", "val_high")
            )
            colour = VERMILION if role == "control" else BLUE
            axes.plot(spots, values, color=colour, marker="o", markersize=3.5, linewidth=1.4, label="merged")
            axes.fill_between(spots, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(
                number(mine[0]["reference"]), color="black", linewidth=1.0, linestyle=(0, (6, 2)), label="its own model"
            )
            axes.axvline(chosen, color=GREY, linewidth=1.2, label=f"chosen: {chosen:g}")
            axes.set_title(
                short(name, 26) + (" (control)" if role == "control" and "control" not in name else ""), fontsize=10
            )
            share_axis(axes, "y")
            axes.set_xlabel("coefficient")
            if place % across == 0:
                axes.set_ylabel("validation accuracy")
        for axes in grid.flat[len(data) :]:
            axes.set_visible(False)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def backbone_table(rows: Sequence[Row], coefficient: float) -> Table:
    """Test accuracies with their 95% intervals for the terminal: a line a backbone, a column a data set, and the tasks' mean.

    Args:
        rows: data, role, backbone ("base", "own", "merged"), test_accuracy, test_low, test_high; a control has no "own".
    """
    data = list(dict.fromkeys(str(row["data"]) for row in rows))
    cells = {(str(row["backbone"]), str(row["data"])): row for row in rows}
    table = Table(title="Test accuracy", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("backbone", no_wrap=True)
    for name in data:
        table.add_column(Text(short(name, 26)), no_wrap=True)
    tasks = [name for name in data if ("own", name) in cells]
    if len(tasks) > 1:
        table.add_column("mean of the tasks", no_wrap=True)
    for backbone, told in _BACKBONES.items():
        label = f"{told}, at {coefficient:g}" if backbone == "merged" else told
        found = [_told(cells.get((backbone, name))) for name in data]
        if len(tasks) > 1:
            found.append(percent(fmean(number(cells[backbone, name]["test_accuracy"]) for name in tasks)))
        table.add_row(label, *found)
    return table


def _told(row: Row | None) -> str:
    if row is None:
        return ""
    low, high = (100 * number(row[key]) for key in ("test_low", "test_high"))
    return f"{percent(number(row['test_accuracy']))} ({low:.1f} to {high:.1f})"
