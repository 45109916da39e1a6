"""The figures and tables of `weightsmith compress`, of made-up values."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError
from weightsmith.report import save
from weightsmith.report.compression import (
    LEAST_SHOWN,
    MOST_SHOWN,
    agreement_table,
    compressed_table,
    faithfulness_figure,
    kept_figure,
    shown_models,
)
from weightsmith.report.compression_charts import divergence_blocks, faithfulness_blocks, kept_blocks
from weightsmith.report.parts import Bars, Chart, HeatMap, Point, Tabs, Words
from weightsmith.report.plots import BLUE

WHOLE = Shape(tokens=5, width=32, head_width=8, patch=16, classes=4, heads=(4, 2, 3), neurons=(32, 16, 8))
PART = Kept(((0, 3), (), (1,)), (tuple(range(0, 32, 2)), (), (0,)))


def pixels_of(figure: Figure, tmp_path) -> np.ndarray:
    save(figure, tmp_path / "figure.png")
    return imread(tmp_path / "figure.png")[..., :3]


def test_the_map_shows_which_heads_stay_and_how_many_neurons() -> None:
    figure = kept_figure([("a model", PART)], WHOLE)
    heads, widths = figure.axes
    cells = np.asarray(heads.images[0].get_array())
    assert cells.shape == (3, 4)
    assert [np.flatnonzero(row == 1).tolist() for row in cells] == [[0, 3], [], [1]]
    assert np.isnan(cells[1, 2:].astype(float)).all() or np.ma.is_masked(heads.images[0].get_array()[1, 2:])
    shown = [bar.get_width() for bar in widths.patches]
    assert shown == [32, 16, 8, 16, 0, 1]
    assert heads.get_title(loc="left") == "a model"


def test_many_models_have_a_panel_each_up_to_a_number(tmp_path) -> None:
    models = [(f"model {place}", PART) for place in range(MOST_SHOWN + 1)]
    few, many = kept_figure(models[:3], WHOLE), kept_figure(models, WHOLE)
    assert [axes.get_title(loc="left") for axes in few.axes if axes.get_title(loc="left")] == [n for n, _ in models[:3]]
    titles = [axes.get_title(loc="left") for axes in many.axes if axes.get_title(loc="left")]
    assert titles == [name for name, _ in models[:MOST_SHOWN]]
    seen = pixels_of(few, tmp_path)
    blue = np.array([int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert (np.abs(seen - blue).max(-1) < 0.02).mean() > 0.02


def curve(name: str, values: list[float], **more: object) -> list[dict[str, object]]:
    fractions = [0.0, 0.01, 0.1, 1.0]
    return [
        {"name": name, "fraction": str(f), "value": str(v), "low": str(v - 0.1), "high": str(v + 0.1), **more}
        for f, v in zip(fractions, values, strict=True)
    ]


def test_faithfulness_has_a_line_a_ranking_with_its_areas(tmp_path) -> None:
    rows = curve("good", [0, 0.6, 0.9, 1], cpr="0.91", cmd="0.09") + curve("bad", [0, -3, -0.5, 1])
    figure = faithfulness_figure(rows[::-1])
    (axes,) = figure.axes
    lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {"good (CPR 0.910, CMD 0.090)", "bad"}
    good = lines["good (CPR 0.910, CMD 0.090)"]
    assert list(good.get_xdata()) == [0.0, 0.01, 0.1, 1.0]
    assert list(good.get_ydata()) == [0.0, 0.6, 0.9, 1.0]
    assert axes.get_ylim()[0] == pytest.approx(LEAST_SHOWN)
    assert axes.get_xlim()[0] > -0.01
    seen = pixels_of(figure, tmp_path)
    assert 0.005 < (seen.min(-1) < 0.9).mean() < 0.5


def test_agreement_has_a_line_a_method() -> None:
    rows = [
        {"method": method, "kind": kind, "units": 6, "spearman": value}
        for method, kind, value in (
            ("gauss-newton", "head", "0.97"), ("gauss-newton", "block", ""), ("exact", "head", "1"), ("random", "head", 0.1),
        )
    ]  # fmt: skip
    assert agreement_table(rows) == [
        {"score": "gauss-newton", "head (6)": "0.970", "block (6)": "n/a"},
        {"score": "random", "head (6)": "0.100"},
    ]


def test_the_page_says_what_the_faithfulness_figure_shows() -> None:
    rows = curve("good", [0, 0.6, 0.9, 1], cpr="0.91", cmd="0.09") + curve("bad", [0, -3, -0.5, 1])
    (chart,) = faithfulness_blocks(rows[::-1])
    assert isinstance(chart, Chart)
    lines = {line.name: line for line in chart.lines}
    assert set(lines) == {"good (CPR 0.910, CMD 0.090)", "bad"}
    assert lines["bad"].points[1] == Point(0.01, -3, -3.1, -2.9)
    assert chart.y_range is not None
    assert chart.y_range[0] == pytest.approx(LEAST_SHOWN, abs=0.1)
    assert "lower edge" in chart.caption
    spots = chart.drawn[0 if chart.lines[0].name == "bad" else 1].spots
    assert spots[1].y == chart.frame[3]  # drawn at the edge, and told as it is
    assert "−3 (−3.1 to −2.9)" in spots[1].told
    assert "lower edge" not in faithfulness_blocks(rows[:4])[0].caption
    assert faithfulness_blocks([]) == []


def test_the_page_counts_what_stays_and_maps_the_heads() -> None:
    heads, neurons, tabs = kept_blocks([("a model", PART), ("another", PART)], WHOLE)
    assert isinstance(heads, HeatMap)
    assert isinstance(neurons, HeatMap)
    assert isinstance(tabs, Tabs)
    assert [cell.text for cell in heads.cells[0] if cell] == ["2", "0", "1"]
    assert [cell.told for cell in neurons.cells[1] if cell] == [
        "16 of 32 MLP neurons stay", "0 of 16 MLP neurons stay", "1 of 8 MLP neurons stay",
    ]  # fmt: skip
    assert [cell.share for cell in heads.cells[0] if cell] == [0.5, 0.0, pytest.approx(1 / 3)]
    (title, (heat,)) = tabs.panels[0]
    assert title == "a model"
    assert isinstance(heat, HeatMap)
    assert [[None if cell is None else cell.told for cell in line] for line in heat.cells] == [
        ["stays", "removed", "removed", "stays"], ["removed", "removed", None, None], ["removed", "stays", "removed", None],
    ]  # fmt: skip
    assert kept_blocks([], WHOLE) == []


def test_of_very_many_models_the_page_says_which_are_shown() -> None:
    blocks = kept_blocks([(f"model {place}", PART) for place in range(50)], WHOLE)
    told = [sentence for block in blocks if isinstance(block, Words) for sentence in block.sentences]
    assert told == ["The first 40 of 50 models.", f"Maps of heads are of the first {MOST_SHOWN} of 50 models."]


def test_divergence_has_both_kinds_of_images_and_the_budget_of_those_that_had_one() -> None:
    rows = [{**ROW, "goal": 0.05}, {**ROW, "model": "eap_keep_0.7", "goal": 0.7, "budget_holds": "", "kl": ""}]
    (bars,) = divergence_blocks(rows)
    assert isinstance(bars, Bars)
    judging, held_out, budget = bars.lines
    assert [(p.x, p.y, p.low, p.high) for p in (judging.points[0], held_out.points[1])] == [
        (0, 0.0412, 0.03, 0.05), (1, 0.0444, 0.04, 0.05),
    ]  # fmt: skip
    assert list(budget.points) == [Point(0, 0.05)]
    assert divergence_blocks([{**ROW, "goal": 0.05, "kl": "", "kl_held_out": ""}]) == []


ROW: dict[str, object] = {
    "model": "acdc_threshold_0.05", "asked": "--acdc-thresholds 0.05", "heads": "3 of 9", "neurons": "17 of 56",
    "blocks": "2 of 3", "macs_kept": "0.412", "parameters_kept": 0.5, "bytes_on_disk": 123456, "kl": 0.0412,
    "kl_low": 0.03, "kl_high": 0.05, "kl_held_out": "0.0444", "kl_held_out_low": "0.04", "kl_held_out_high": "0.05",
    "kl_ratio": "1.08", "budget_holds": "yes", "recovered_epochs": "",
}  # fmt: skip


def test_the_table_says_what_a_budget_came_to() -> None:
    (shown,) = shown_models([ROW])
    assert shown["MACs kept"] == "41.2%"
    assert shown["bytes on disk"] == "123 k"
    assert shown["KL on judging images, nats"] == "0.0412 (0.0300 to 0.0500)"
    assert shown["KL on held-out images, nats"] == "0.0444 (0.0400 to 0.0500)"
    assert (shown["held out / judging"], shown["budget holds on held-out images"]) == ("1.08", "yes")


def test_the_terminal_fits_eighty_columns_before_an_evaluation_too() -> None:
    unknown = dict.fromkeys(("kl_held_out", "kl_held_out_low", "kl_held_out_high", "kl_ratio", "bytes_on_disk"), "")
    console = Console(file=io.StringIO(), width=80)
    console.print(compressed_table([ROW, {**ROW, **unknown, "model": "eap_keep_0.7"}]))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("acdc_threshold_0.05", "41.2%", "0.0412", "0.0444", "eap_keep_0.7"):
        assert words in told
    assert "…" not in told


@pytest.mark.parametrize("make", [lambda: kept_figure([], WHOLE), lambda: faithfulness_figure([])])
def test_nothing_to_show(make) -> None:
    with pytest.raises(WeightsmithError, match="nothing to show"):
        make()
