"""The sweep's figure and tables."""

from __future__ import annotations

import pytest

from weightsmith.errors import WeightsmithError
from weightsmith.report.arithmetic import best_choice, choice_table, choices, sweep_figure


def point(operation: str, mode: str, coefficient: float, data: str, val: float, test: float) -> dict[str, object]:
    return {
        "operation": operation, "mode": mode, "coefficient": coefficient, "data": data, "val_accuracy": val,
        "test_accuracy": test, "test_low": test - 0.1, "test_high": test + 0.1,
    }  # fmt: skip


ROWS = [
    point("subtract", "raw", 0.0, "one", 0.9, 0.8),
    point("subtract", "raw", 0.0, "two", 0.1, 0.2),
    point("subtract", "raw", 0.5, "one", 0.7, 0.6),
    point("subtract", "raw", 0.5, "two", 0.6, 0.9),
    point("add", "anchored", 0.0, "one", 0.9, 0.8),
    point("add", "anchored", 0.0, "two", 0.1, 0.2),
    point("add", "anchored", 0.5, "one", 0.8, 0.1),
    point("add", "anchored", 0.5, "two", 0.2, 0.1),
]
REFERENCES = [
    {"backbone": name, "data": data, "test_accuracy": value, "test_low": value - 0.05, "test_high": value + 0.05}
    for name, data, value in (
        ("base", "one", 0.8), ("base", "two", 0.2), ("finetuned", "one", 0.4), ("finetuned", "two", 0.95),
    )
]  # fmt: skip


def test_validation_chooses_and_of_equal_ones_the_smallest() -> None:
    subtract, add = choices(ROWS)
    assert (subtract["coefficient"], subtract["val_accuracy"]) == (0.5, 0.65)
    assert (subtract["test_one"], subtract["test_two"], subtract["test_two_high"]) == (0.6, 0.9, 1.0)
    assert add["coefficient"] == 0.0
    assert best_choice([add, subtract]) == subtract


def test_the_figure_has_a_panel_an_operation_and_data_set_and_a_curve_a_mode() -> None:
    figure = sweep_figure(ROWS, REFERENCES, {"one": 0.5, "two": 0.25})
    panels = figure.get_axes()
    assert [axes.get_title() for axes in panels] == ["subtract", "add", "", ""]
    curves = {line.get_label(): list(line.get_ydata()) for line in panels[2].get_lines()}
    assert curves["raw"] == [0.2, 0.9]
    assert curves["fine-tuned as it is"] == [0.95, 0.95]
    assert curves["chance"] == [0.25, 0.25]
    with pytest.raises(WeightsmithError, match="no coefficient"):
        sweep_figure([], [], {})


def test_the_table_tells_the_choice_once() -> None:
    table = choice_table(choices(ROWS), REFERENCES)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["base", "fine-tuned", "subtract, raw, at 0.5"]
    assert cells[2] == ["20.0% (15.0 to 25.0)", "95.0% (90.0 to 100.0)", "90.0% (80.0 to 100.0)"]
