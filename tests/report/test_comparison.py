from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from weightsmith.errors import WeightsmithError
from weightsmith.report import by_batch_size, by_method, comparison_figures, comparison_table, save
from weightsmith.report.comparison import MEASURES

Rows = list[dict[str, object]]
LaidOut = Callable[[Figure], tuple[float, float]]
LONG = "EMMET + replay (rate 0.5, buffer of 200, by priority)"


def compared(methods: Sequence[str] = ("ROME", "AlphaEdit"), sizes: Sequence[int] = (1, 16), seeds: int = 3) -> Rows:
    """Rows as a CSV file gives them, the methods in an order that is no one's alphabet."""
    random = np.random.default_rng(0)
    return [
        {
            "method": method,
            "batch_size": str(size),
            "seed": str(seed),
            **{name: f"{value:.6f}" for name, value in zip(MEASURES, random.uniform(0.5, 0.9, 4), strict=True)},
            "seconds": f"{random.uniform(1, 2):.3f}",
        }
        for seed in range(seeds)
        for size in sizes
        for method in methods
    ]


def values(rows: Rows, method: str, size: int, name: str) -> list[float]:
    return [float(str(r[name])) for r in rows if (r["method"], r["batch_size"]) == (method, str(size))]


def test_the_table_has_mean_and_students_interval_over_seeds() -> None:
    rows = compared()
    table = comparison_table(rows)
    assert [(row["method"], row["batch_size"], row["seeds"]) for row in table] == [
        ("ROME", 1, 3), ("ROME", 16, 3), ("AlphaEdit", 1, 3), ("AlphaEdit", 16, 3),
    ]  # fmt: skip
    for row in table:
        for name in (*MEASURES, "seconds"):
            found = values(rows, row["method"], row["batch_size"], name)
            low, high = stats.t.interval(0.95, 2, np.mean(found), stats.sem(found))
            if name != "seconds":
                low, high = max(low, 0.0), min(high, 1.0)
            assert row[name] == pytest.approx(np.mean(found))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))


def test_a_share_is_no_more_than_all_and_a_missing_seed_is_left_out() -> None:
    rows = compared(["ROME"], [4])
    for row, value in zip(rows, ("1.0", "0.8", "nan"), strict=True):
        row["efficacy"] = value
    rows[0]["composite"] = rows[1]["composite"] = ""
    (row,) = comparison_table(rows)
    assert row["efficacy"] == pytest.approx(0.9)
    assert (row["efficacy_low"], row["efficacy_high"]) == (0.0, 1.0)
    assert row["composite"] == float(str(rows[2]["composite"]))
    assert math.isnan(row["composite_low"]), "a single seed has no interval"
    (row,) = comparison_table([rows[0]])
    assert math.isnan(row["composite"])


def test_five_figures_under_the_names_of_their_files() -> None:
    assert list(comparison_figures(compared())) == [
        "efficacy_success_by_method",
        "paraphrase_success_by_method",
        "neighborhood_specificity_by_method",
        "composite_score_by_method",
        "composite_score_by_batch_size",
    ]


def spots(axes: Axes, marker_size: float) -> list[tuple[float, float]]:
    """Where markers of a size stand."""
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() != "None" and line.get_markersize() == marker_size
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def test_by_method_draws_means_intervals_and_seeds_in_the_order_of_the_rows() -> None:
    rows = compared()
    axes = by_method(rows, "paraphrase").axes[0]
    table = comparison_table(rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ROME", "AlphaEdit"]
    top, bottom = axes.get_yticks()
    low, high = axes.get_ylim()
    assert low > high, "the first method is on top"
    assert top < bottom
    means = spots(axes, 6)
    assert [x for x, _ in means] == pytest.approx([row["paraphrase"] for row in table])
    assert np.mean([y for _, y in means[:2]]) == pytest.approx(top)
    assert [y for _, y in means] == sorted(y for _, y in means)
    ends = [collection.get_segments()[0][:, 0].tolist() for collection in axes.collections]
    assert ends == [pytest.approx([row["paraphrase_low"], row["paraphrase_high"]]) for row in table]
    assert sorted(x for x, _ in spots(axes, 3.2)) == pytest.approx(sorted(float(str(r["paraphrase"])) for r in rows))
    assert [text.get_text() for text in axes.texts] == [f"{100 * row['paraphrase']:.1f}%" for row in table]
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.texts] == ["1", "16"]


def test_by_batch_size_has_a_line_a_method_on_a_scale_of_doublings() -> None:
    rows = compared(sizes=[64, 1, 4])
    axes = by_batch_size(rows).axes[0]
    table = comparison_table(rows)
    assert (axes.get_xscale(), [label.get_text() for label in axes.get_xticklabels()]) == ("log", ["1", "4", "64"])
    lines = [line for line in axes.lines if line.get_markersize() == 6]
    for line, method in zip(lines, ("ROME", "AlphaEdit"), strict=True):
        assert line.get_label() == method
        assert line.get_ydata() == pytest.approx([row["composite"] for row in table if row["method"] == method])
        assert np.log2(line.get_xdata()) == pytest.approx([0, 2, 6], abs=0.1)
    assert len({line.get_color() for line in lines}) == 2


@pytest.mark.parametrize(
    ("methods", "sizes", "seeds"),
    [
        (["ROME"], [8], 1),
        (["ROME", LONG], [8], 3),
        ([LONG, *(f"method {i}" for i in range(9))], [2**i for i in range(9)], 2),
    ],
)
def test_few_and_many_find_room(methods: list[str], sizes: list[int], seeds: int, laid_out: LaidOut) -> None:
    for figure in comparison_figures(compared(methods, sizes, seeds)).values():
        width, height = laid_out(figure)
        assert width < 9
        assert height < 25
        said = figure.axes[0].get_xlabel() + figure.axes[0].get_ylabel()
        assert ("a single seed" if seeds == 1 else f"mean of {seeds} seeds") in said


def test_ten_methods_are_told_apart() -> None:
    axes = by_batch_size(compared([f"method {i}" for i in range(10)])).axes[0]
    looks = [
        (line.get_color(), line.get_marker(), line.get_markerfacecolor())
        for line in axes.lines
        if line.get_markersize() == 6
    ]
    assert len(set(looks)) == len(looks) == 10


def test_what_was_not_measured_is_left_open(tmp_path) -> None:
    rows = compared()
    for row in rows:
        if row["method"] == "ROME":
            row["composite"] = "nan"
    rows = [row for row in rows if (row["method"], row["batch_size"]) != ("AlphaEdit", "16")]
    figures = comparison_figures(rows)
    assert [text.get_text() for text in figures["composite_score_by_method"].axes[0].texts][:2] == ["n/a", "n/a"]
    (legend,) = figures["composite_score_by_batch_size"].legends
    assert [text.get_text() for text in legend.texts] == ["ROME (n/a)", "AlphaEdit"]
    for name in ("composite_score_by_method", "composite_score_by_batch_size"):
        save(figures[name], tmp_path / f"{name}.png")  # a warning would be an error


def test_what_cannot_be_compared_is_told() -> None:
    with pytest.raises(WeightsmithError, match="there is nothing to compare"):
        comparison_table([])
    rows = compared()
    rows[1]["batch_size"] = ""
    with pytest.raises(WeightsmithError, match="has no batch_size"):
        comparison_figures(rows)
