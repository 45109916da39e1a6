from __future__ import annotations

import math
from itertools import pairwise

import pytest

from weightsmith.errors import WeightsmithError
from weightsmith.report.arithmetic_page import coefficient_chart
from weightsmith.report.parts import Chart, Level, Line, Point
from weightsmith.report.parts.chart import LEFT, MOST_POINTS, RIGHT, WIDTH
from weightsmith.report.render import rendered


def chart(*lines: Line, **more: object) -> Chart:
    return Chart(title="t", x_title="x", y_title="y", lines=lines, **more)  # type: ignore[arg-type]


def test_points_lie_where_their_numbers_say() -> None:
    drawn = chart(Line("a", [Point(0, 0), Point(5, 5), Point(10, 10)])).drawn[0]
    (x0, y0), (x1, y1), (x2, y2) = ((spot.x, spot.y) for spot in drawn.spots)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y2 < y1 < y0  # upwards is less
    assert drawn.path == f"M{x0} {y0}L{x1} {y1}L{x2} {y2}"


def test_doublings_are_equally_far_apart() -> None:
    spots = chart(Line("a", [Point(size, 1) for size in (1, 2, 4, 8)]), x_axis="log2").drawn[0].spots
    steps = {round(b.x - a.x) for a, b in pairwise(spots)}
    assert len(steps) == 1


def test_steps_go_across_before_they_go_up() -> None:
    drawn = chart(Line("front", [Point(1, 1), Point(2, 3)], steps=True, quiet=True)).drawn[0]
    first, second = drawn.spots
    assert drawn.path == f"M{first.x} {first.y}H{second.x}V{second.y}"
    assert drawn.mark == ""


def test_what_is_no_number_is_not_drawn_and_nothing_at_all_is_refused() -> None:
    drawn = chart(Line("a", [Point(0, math.nan), Point(1, 2), Point(math.inf, 1)]))
    assert len(drawn.drawn[0].spots) == 1
    with pytest.raises(WeightsmithError, match="nothing to draw"):
        chart(Line("a", [Point(0, math.nan)]))
    with pytest.raises(WeightsmithError, match="nothing to draw"):
        chart(Line("a", [Point(0, 1)]), x_axis="log10")


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_one_value_has_an_axis_all_the_same(value: float) -> None:
    one = chart(Line("a", [Point(value, value)]))
    (spot,) = one.drawn[0].spots
    assert 0 < spot.x < WIDTH
    assert one.ticks[0]
    assert one.ticks[1]
    assert "nan" not in rendered(one, "x", 3)


def test_a_point_tells_its_name_its_values_and_that_it_was_chosen() -> None:
    point = Point(0.3, 0.912, 0.88, 0.94, told="model b", chosen=True)
    one = chart(Line("ties", [point]), y_percent=True, chosen="recommended")
    assert one.drawn[0].spots[0].told == "ties, model b: y 91.2% (88.0% to 94.0%) at x 0.3; recommended"
    assert one.table == [("ties, model b", "0.3", "91.2%", "88.0% to 94.0%", True)]
    text = rendered(one, "x", 3)
    assert text.count('class="ring"') == 2  # around the point, and in the legend


def test_lines_with_intervals_stand_a_little_apart() -> None:
    points = [Point(0, 1, 0.5, 1.5), Point(1, 1, 0.5, 1.5)]
    first, second = chart(Line("a", points), Line("b", points)).drawn
    assert 2 < second.spots[0].x - first.spots[0].x < 8
    first, second = chart(*(Line(name, [Point(0, 1), Point(1, 1)]) for name in "ab")).drawn
    assert first.spots[0].x == second.spots[0].x


def test_lines_without_an_x_in_common_stay_where_they_were_measured() -> None:
    ones, others = [Point(0, 1, 0.5, 1.5), Point(2, 1, 0.5, 1.5)], [Point(1, 1, 0.5, 1.5)]
    both = chart(Line("a", ones), Line("b", others)).drawn
    alone = chart(Line("a", [*ones, *others])).drawn[0].spots
    assert [spot.x for line in both for spot in line.spots] == [spot.x for spot in alone]


def test_an_interval_of_x_is_drawn_told_and_within_the_axis() -> None:
    row = {"ms": "4", "ms_low": "2", "ms_high": "8", "accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
    one = chart(Line("a", [Point.of(row, "ms", "accuracy")], joined=False), bounds="95% interval")
    (spot,) = one.drawn[0].spots
    assert spot.left is not None
    assert spot.right is not None
    assert LEFT < spot.left < spot.x < spot.right < WIDTH - RIGHT
    assert spot.right - spot.x == pytest.approx(2 * (spot.x - spot.left), abs=0.3)
    assert spot.told == "a: y 0.5 (0.25 to 0.75) at x 4 (2 to 8)"
    text = rendered(one, "x", 3)
    assert f'<path class="bounds" d="{spot.bars}">' in text
    assert spot.bars.count("M") == 2
    assert '<th scope="col" class="n">95% interval</th>' in text


def test_an_axis_can_be_logarithmic_and_have_nought() -> None:
    points = [Point(x, 1) for x in (0.0, 0.01, 0.1, 1.0)]
    one = chart(Line("a", points), x_axis="log10 from 0", x_ticks=(0.0, 0.001, 0.01, 0.1, 1.0), x_percent=True)
    spots = one.drawn[0].spots
    steps = [b.x - a.x for a, b in pairwise(spots)]
    assert max(steps) - min(steps) < 0.3
    assert spots[0].x > LEFT
    assert [label for _, label in one.ticks[0]] == ["0%", "1%", "10%", "100%"]
    assert [at for at, _ in one.ticks[0]] == pytest.approx([spot.x for spot in spots], abs=0.1)
    assert len(chart(Line("a", [Point(-1, 1), *points]), x_axis="log10 from 0").drawn[0].spots) == 4
    alone = chart(Line("a", [Point(0, 1)]), x_axis="log10 from 0")
    assert alone.ticks[0][0][1] == "0"


def test_quiet_points_that_are_not_joined_are_small_things_to_read_all_the_same() -> None:
    one = chart(
        Line("few", [Point(0, 1, told="site")], joined=False, quiet=True), Line("front", [Point(1, 1)], quiet=True)
    )
    assert [(line.look, bool(line.mark)) for line in one.drawn] == [("quiet", True), ("quiet", False)]
    assert [row[0] for row in one.table] == ["few, site"]


def test_a_long_line_is_thinned_and_keeps_what_was_chosen() -> None:
    points = [Point(place, 1, chosen=place == 4_999) for place in range(10_000)]
    spots = chart(Line("a", points)).drawn[0].spots
    assert len(spots) <= MOST_POINTS + 1
    assert any(spot.chosen for spot in spots)


def test_names_are_text_in_svg_and_html() -> None:
    bad = '"><script>x</script>'
    text = rendered(chart(Line(bad, [Point(0, 1, told=bad)]), levels=[Level(bad, 1)], chosen=bad), bad, 3)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") >= 3


def test_a_search_of_coefficients_marks_its_choice_by_line_and_sorts_what_it_is_given() -> None:
    rows = [{"coefficient": str(at), "accuracy": str(score)} for at, score in ((0.6, 0.5), (0.0, 0.4), (0.3, 0.7))]
    one = coefficient_chart(
        "search", {"ties": rows, "dare": rows}, chosen={"dare": 0.3}, levels={"base": 0.4, "?": math.nan}
    )
    assert [point.x for point in one.lines[0].points] == [0.0, 0.3, 0.6]
    assert [point.chosen for point in one.lines[0].points] == [False] * 3
    assert [point.chosen for point in one.lines[1].points] == [False, True, False]
    assert [level.name for level in one.levels] == ["base"]
    assert all(
        any(point.chosen for point in line.points) for line in coefficient_chart("s", {"a": rows}, chosen=0.6).lines
    )
    with pytest.raises(WeightsmithError, match="no point"):
        coefficient_chart("search", {"ties": [{"coefficient": "0", "accuracy": ""}]})
