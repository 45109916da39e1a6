from __future__ import annotations

import math
import re

import pytest

from weightsmith.errors import WeightsmithError
from weightsmith.report.parts import Line, Point
from weightsmith.report.parts.bars import Bars
from weightsmith.report.parts.chart import WIDTH
from weightsmith.report.render import rendered


def bars(*lines: Line, names: tuple[str, ...] = ("one", "two"), **more: object) -> Bars:
    return Bars(title="t", names=names, row_title="name", value_title="share", lines=lines, **more)  # type: ignore[arg-type]


def test_bars_begin_at_nought_and_end_where_their_values_say() -> None:
    made = bars(Line("", [Point(0, 0.5), Point(1, 1.0)]), filled=True, value_range=(0.0, 1.0))
    (first,), (second,) = (row.spots for row in made.rows)
    left, _, right, _ = made.frame
    assert (first.nought, second.x) == (left, right)
    assert first.x - left == pytest.approx((right - left) / 2, abs=0.2)
    assert first.y < second.y  # the first name on top


def test_a_bar_goes_either_way() -> None:
    made = bars(Line("", [Point(0, -0.2), Point(1, 0.4)]), filled=True)
    (less,), (more,) = (row.spots for row in made.rows)
    assert less.x < less.nought < more.x
    assert made.nought == less.nought


def test_a_value_says_its_name_line_interval_single_values_and_that_it_was_chosen() -> None:
    point = Point(1, 0.5, 0.4, 0.6, told="rank 2", chosen=True, each=(0.45, 0.55))
    made = bars(
        Line("small", [Point(0, 0.2)]), Line("large", [point]), percent=True, chosen="recommended", each="draws"
    )
    (spot,) = made.rows[1].spots
    assert spot.told == "two, large, rank 2: share 50.0% (40.0% to 60.0%); draws 45.0%, 55.0%; recommended"
    assert made.table[1] == ("two", "large", "50.0%", "40.0% to 60.0%", True)
    assert made.heads == ["name", "line", "share", "interval"]
    text = rendered(made, "x", 3)
    assert text.count('class="each"') == 3  # two on the line, one in the legend
    assert text.count('class="ring"') == 2


def test_what_is_no_number_is_left_open_and_nothing_at_all_is_refused() -> None:
    made = bars(Line("", [Point(0, math.nan), Point(1, 0.5)]))
    assert [len(row.spots) for row in made.rows] == [0, 1]
    assert made.table[0][1] == "n/a"
    with pytest.raises(WeightsmithError, match="nothing to draw"):
        bars(Line("", [Point(0, math.nan)]))


@pytest.mark.parametrize("name", ["x" * 500, "EMMET + replay (rate 0.5, buffer of 200, by priority)", "良性" * 30, ""])
def test_names_find_room(name: str) -> None:
    made = bars(Line("", [Point(0, 0.5), Point(1, 0.2)]), names=(name, "b"))
    left, _, right, bottom = made.frame
    assert left < WIDTH / 2 < right
    assert 1 <= len(made.labels[0]) <= 3
    assert all(0 < height < bottom for row in made.rows for _, height in row.label)
    assert made.rows[0].spots[0].told.startswith(name or "share")  # in full


def test_names_are_text() -> None:
    bad = '"><script>x</script>'
    text = rendered(bars(Line(bad, [Point(0, 1, told=bad)]), names=(bad, "b"), chosen=bad), "x", 3)
    assert "<script>" not in text
    assert not re.search("nan|None", text)
