"""The figure, the page and the terminal's table of `weightsmith evaluate`, of made-up rows."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import ConfidenceBin
from weightsmith.measure import Interval, proportion
from weightsmith.report import save
from weightsmith.report.evaluation import ByClass, evaluation_figure
from weightsmith.report.evaluation_charts import front_charts, measure_charts
from weightsmith.report.evaluation_page import EvaluationInputs, build_evaluation, evaluated_table, short_count
from weightsmith.report.parts import Block, Point
from weightsmith.report.words import number

LaidOut = Callable[[Figure], tuple[float, float]]
Rows = list[dict[str, object]]
PANELS = 6


def evaluated(names: list[str], *, top5: bool = True, text: bool = False) -> Rows:
    """Rows as they are made, or as a CSV file gives them."""
    random = np.random.default_rng(0)

    def three(name: str, value: float, wide: float) -> dict[str, object]:
        return {name: value, f"{name}_low": value - wide, f"{name}_high": value + wide}

    rows: Rows = []
    for place, name in enumerate(names):
        accuracy, time = float(random.uniform(0.6, 0.9)), float(random.uniform(5, 20))
        row: dict[str, object] = {"model": name, "baseline": place == 0, "pareto": place % 3 == 0}
        row |= three("accuracy", accuracy, 0.01) | three("accuracy_change", accuracy - 0.8 if place else 0.0, 0.005)
        row |= three("top5", 0.97, 0.004) if top5 else {"top5": "", "top5_low": "", "top5_high": ""}
        for score in ("macro_precision", "macro_recall", "macro_f1", "confidence", "confidence_when_right"):
            row |= three(score, accuracy, 0.01)
        row |= three("confidence_when_wrong", 0.5, 0.02) | three("confidence_gap", 0.3, 0.02)
        row |= three("overconfidence", 0.04, 0.01) | three("entropy", 0.8, 0.03) | three("efficiency", 8.0, 1.0)
        row["calibration_error"] = 0.041
        for size in (1, 8, 64):
            row |= three(f"ms_{size}", time * size**0.8 / 5, 0.2)
            row |= {f"ms_{size}_q1": time * size**0.8 / 5.5, f"ms_{size}_q3": time * size**0.8 / 4}
            row |= {f"images_per_second_{size}": 1e4 / time} | three(f"time_ratio_{size}", time / 10, 0.02)
        row |= {"parameters": 1_234_567 * (place + 1), "macs": 48_300_000, "flops": 96_600_000}
        row["bytes_on_disk"] = "" if place == 1 else 4_000_000 // (place + 1)
        rows.append({key: str(value) for key, value in row.items()} | {
            "baseline": row["baseline"], "pareto": row["pareto"]
        } if text else row)  # fmt: skip
    return rows


def classes(names: list[str], count: int = 4) -> ByClass:
    random = np.random.default_rng(1)
    return [
        (f"class {c}", {name: proportion(int(random.integers(20, 50)), 50) for name in names}) for c in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 16])
def test_the_figure_has_room_for_all(count: int, laid_out: LaidOut) -> None:
    names = [f"vit-{'pruned-' * (i % 3)}{i}" for i in range(count)]
    figure = evaluation_figure(evaluated(names), classes(names), names[0])
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == PANELS
    width, height = laid_out(figure)
    assert 10 < width < 20
    assert 5 < height < 20
    called = {text.get_text() for text in figure.legends[0].get_texts()}
    assert called == {f"{names[0]} (baseline)", *names[1:]}


def test_the_figure_is_not_blank_and_the_same_each_time(tmp_path) -> None:
    names = ["one", "two", "three"]
    for file in ("a.png", "b.png"):
        save(evaluation_figure(evaluated(names), classes(names), "one"), tmp_path / file)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = imread(tmp_path / "a.png")[..., :3]
    height, width = (side // 3 * 3 for side in pixels.shape[:2])
    dark = pixels[:height, :width].min(-1) < 0.9
    assert all(half.mean() > 0.003 for row in np.split(dark[: height // 2 * 2], 2) for half in np.split(row, 3, axis=1))


def test_values_are_drawn_where_they_are() -> None:
    names = ["one", "two"]
    rows = evaluated(names)
    figure = evaluation_figure(rows, classes(names), "one")
    front = figure.axes[5]
    spots = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in front.lines if len(line.get_xdata()) == 1
    }
    assert {(row["ms_8"], row["accuracy"]) for row in rows} <= spots
    strokes = [line for line in figure.axes[1].lines if line.get_marker() == "|"]
    expected = [shares["two"].value - shares["one"].value for _, shares in classes(names)]
    assert [list(line.get_xdata()) for line in strokes] == [expected]


def test_a_csv_file_draws_the_same() -> None:
    names = ["one", "two"]
    mine, theirs = (evaluation_figure(evaluated(names, text=text), classes(names), "one") for text in (False, True))
    for one, other in zip(mine.axes, theirs.axes, strict=True):
        for line, again in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), again.get_xydata())


def test_nothing_to_show() -> None:
    with pytest.raises(WeightsmithError, match="nothing to show"):
        evaluation_figure([], [], "one")


def charts(rows: Rows, by_class: ByClass = (), bins: dict[str, list[ConfidenceBin]] | None = None) -> dict[str, Block]:
    """The charts of the page, by title."""
    found = [*front_charts(rows, [("fastest", "two")]), *measure_charts(rows, by_class, "one", bins or {})]
    return {block.title: block for _, blocks in found for block in blocks}  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", [False, True])
def test_the_pages_charts_have_every_number_of_the_figure(text: bool) -> None:
    names = ["one", "two"]
    rows = evaluated(names, text=text)
    found = charts(rows, classes(names))
    assert list(found) == [
        "Accuracy against time", "Accuracy against multiplications", "Accuracy", "Accuracy − the baseline's", "Confidence",
        "Calibration error", "Time by images in a batch", "Time, of the baseline's", "Size, of the baseline's",
    ]  # fmt: skip
    one, two = (Numbers({name: number(value) for name, value in row.items()}) for row in rows)

    def points(title: str) -> list[list[Point]]:
        return [list(line.points) for line in found[title].lines if not getattr(line, "quiet", False)]  # type: ignore[attr-defined]

    (first,), (second,) = points("Accuracy against time")
    assert (first.x, first.x_low, first.x_high) == one.three("ms_8")
    assert (first.y, first.low, first.high) == one.three("accuracy")
    assert (first.chosen, second.chosen, second.told) == (False, True, "fastest")
    assert points("Accuracy against multiplications")[1][0].x == 48.3
    top1, top5 = points("Accuracy")
    assert [(p.y, p.low, p.high) for p in (*top1, *top5)] == [
        *(row.three("accuracy") for row in (one, two)), *(row.three("top5") for row in (one, two)),
    ]  # fmt: skip
    ((difference,),) = points("Accuracy − the baseline's")
    assert (difference.y, difference.low, difference.high) == pytest.approx(
        [100 * v for v in two.three("accuracy_change")]
    )
    assert difference.each == [100 * (shares["two"].value - shares["one"].value) for _, shares in classes(names)]
    right, wrong = points("Confidence")
    assert (wrong[1].y, wrong[1].low, wrong[1].high) == two.three("confidence_when_wrong")
    assert [point.y for point in right] == [row["confidence_when_right"] for row in (one, two)]
    assert [point.y for point in points("Calibration error")[0]] == [0.041, 0.041]
    times = points("Time by images in a batch")
    assert [(p.x, p.y, p.low, p.high) for p in times[1]] == [
        (size, two[f"ms_{size}"], two[f"ms_{size}_q1"], two[f"ms_{size}_q3"]) for size in (1, 8, 64)
    ]
    assert [(p.y, p.low, p.high) for (p,) in points("Time, of the baseline's")] == [
        two.three(f"time_ratio_{size}") for size in (1, 8, 64)
    ]
    assert [line.name for line in found["Size, of the baseline's"].lines] == ["parameters", "multiplications"]  # type: ignore[attr-defined]
    assert [p.y for (p,) in points("Size, of the baseline's")] == [2.0, 1.0]


class Numbers(dict[str, float]):
    """A row as numbers, and a value with its bounds."""

    def three(self, name: str) -> tuple[float, float, float]:
        return self[name], self[f"{name}_low"], self[f"{name}_high"]


def test_one_model_alone_has_no_differences_and_many_classes_are_not_drawn_singly() -> None:
    alone = charts(evaluated(["one"]))
    assert "Accuracy" in alone
    assert not {"Accuracy − the baseline's", "Time, of the baseline's", "Size, of the baseline's"} & set(alone)
    names = ["one", "two"]
    many = charts(evaluated(names), classes(names, 13))["Accuracy − the baseline's"]
    assert many.lines[0].points[0].each == []  # type: ignore[attr-defined]


def test_the_front_over_multiplications_is_of_its_own() -> None:
    names = ["one", "two", "three"]
    rows = evaluated(names)
    for row, accuracy, macs in zip(rows, (0.9, 0.8, 0.7), (3e6, 1e6, 2e6), strict=True):
        row |= {"accuracy": accuracy, "macs": macs}
    front = charts(rows)["Accuracy against multiplications"].lines[0]  # type: ignore[attr-defined]
    assert [(point.x, point.y) for point in front.points] == [(1.0, 0.8), (3.0, 0.9)]


def test_accuracy_by_confidence_has_the_bins_with_their_images() -> None:
    bins = {"one": [ConfidenceBin(0.6, 0.7, 0.66, Interval(0.5, 0.4, 0.6, 1200))]}
    (_, one, two) = charts(evaluated(["one", "two"]), bins=bins)["Accuracy by confidence"].lines  # type: ignore[attr-defined]
    assert one.name == "one (baseline)"
    assert list(one.points) == [Point(0.66, 0.5, 0.4, 0.6, "1,200 images")]
    assert list(two.points) == []


def page(names: list[str], **more: object) -> str:
    rows = evaluated(names, top5=False)
    given: dict[str, object] = {"summary": ["Two models."], "notes": ["A note."], "by_class": classes(names)}
    return build_evaluation(
        EvaluationInputs(title="side by side", recommendations=["Best accuracy: one"], rows=rows, **given | more)  # type: ignore[arg-type]
    )


def test_the_page() -> None:
    text = page(["one", "<two>"], config={"tolerance": 1.0}, env={"threads": 2})
    for words in (
        "Best accuracy: one",
        "Two models.",
        "A note.",
        "&lt;two&gt;",
        "difference to baseline",
        "48.3 M",
        "4 MB",
    ):
        assert words in text
    assert text.index("Best accuracy: one") < text.index("Two models.")
    assert "<two>" not in text
    assert not re.search(r"\bnan", text)
    assert "top-5</th>" not in text  # nothing is known of it
    assert "class 3" in text


def test_the_terminals_table() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluated_table(evaluated(["runs/a-rather-long-name", "two"])))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for words in ("runs/a-rather-long-name", "baseline", "4.1%"):
        assert words in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0"), (999, "999"), (1000, "1 k"), (48_347_712, "48.3 M"), (2.5e9, "2.5 G")]
)
def test_counts(count: float, told: str) -> None:
    assert short_count(count) == told
    assert short_count(float("nan")) == "n/a"


def test_classes_have_their_intervals() -> None:
    share = Interval(0.5, 0.25, 0.75, 8)
    text = page(["one"], by_class=[("cat", {"one": share})])
    assert "50.0% (25.0 to 75.0)" in text
