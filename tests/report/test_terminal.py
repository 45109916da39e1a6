from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from weightsmith.report.terminal import Bar, evaluation_table, layer_bars


def shown(renderable: object, width: int = 100, encoding: str = "utf-8") -> str:
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=target, width=width, color_system=None)
    console.print(renderable)
    target.flush()
    return target.buffer.getvalue().decode(encoding)


def test_layer_bars_show_every_layer_with_mean_interval_and_rank(effects):
    lines = [line.split() for line in shown(layer_bars(effects)).splitlines() if line.strip()[:1].isdigit()]
    table = effects.table()
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        (str(row["layer"]), f"{row['mean']:+.4f}", str(row["rank"])) for row in table
    ]


def test_layer_bars_give_up_the_bar_before_the_numbers_on_a_narrow_terminal(effects):
    text = shown(layer_bars(effects), width=56)
    assert all(f"{row['mean']:+.4f}" in text for row in effects.table())


def test_layer_bars_print_where_only_ascii_does(effects):
    assert "####" in shown(layer_bars(effects), encoding="ascii")


@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.004, 0.5, 2.0, float("nan")])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_bar_is_always_as_wide_as_promised(value, ascii_only):
    assert len(Bar(value, -1.0, 2.0, 24).text(ascii_only)) == 24


def test_bars_grow_from_zero_to_both_sides():
    axis = Bar(0.0, -1.0, 1.0, 8)
    texts = [replace(axis, value=value).text() for value in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    assert texts == ["████    ", "  ██    ", "        ", "    ██  ", "    ████"]
    assert replace(axis, value=-0.1, low=0.0, high=0.0).text().strip() == ""


def test_evaluation_table_has_a_column_a_method_and_a_block_a_part(evaluation_rows):
    text = shown(evaluation_table(evaluation_rows(parts=("held_out", "other_site"))))
    header = next(line for line in text.splitlines() if "measure" in line)
    assert header.split() == ["measure", "alphaedit", "head"]
    assert "held-out part" in text
    assert "other site" in text
    assert text.count("90.0% [88.0 to 92.0]") == 4
    assert text.count("-> 94.0% [92.0 to 96.0]") == 4
    assert text.count("+4.0 points [+2.0 to +6.0]") == 4
    for label in ("efficacy", "generalisation", "locality", "repaired"):
        assert text.count(label) == 2


def test_evaluation_table_copes_with_gaps(evaluation_rows):
    rows = [row for row in evaluation_rows() if (row["method"], row["measure"]) != ("head", "repaired")]
    for row in rows:
        if row["measure"] == "locality":
            row.update({"after": "nan", "after_low": "nan", "after_high": "nan", "n": "0"})
    lines = {line.split()[0]: line.split() for line in shown(evaluation_table(rows)).splitlines() if line.split()}
    assert lines["repaired"][-1] == "-"
    assert lines["locality"][-2:] == ["n/a", "n/a"]
    assert shown(evaluation_table([]))


def test_names_with_brackets_are_no_markup(evaluation_rows):
    rows = [{**row, "method": "[red]x"} for row in evaluation_rows()]
    assert "[red]x" in shown(evaluation_table(rows))
