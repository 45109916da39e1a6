"""Which coefficient is the best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import WeightsmithError
from weightsmith.merge.goal import Goal, Point


def point(coefficient: float, *tasks: float, control: float | None = None) -> Point:
    return Point(coefficient=coefficient, tasks=tasks, control=control)


def test_the_largest_mean_of_normalised_accuracies_wins() -> None:
    goal = Goal(references=(0.5, 1.0), wanted=(True, True))
    points = [point(0, 0.1, 0.9), point(0.5, 0.4, 0.7), point(1, 0.5, 0.2)]
    assert goal.normalised(points[1]) == pytest.approx((0.8, 0.7))
    assert goal.score(points[1]) == pytest.approx(0.75)
    assert goal.best(points) is points[1]


def test_of_equal_ones_the_nearest_to_zero() -> None:
    goal = Goal(references=(1.0,), wanted=(True,))
    assert goal.best([point(1, 0.5), point(0.2, 0.5), point(0.4, 0.5)]).coefficient == 0.2


def test_what_is_taken_away_counts_against() -> None:
    goal = Goal(references=(0.8, 0.5), wanted=(False, True), control=0.6, keep=0.9)
    points = [point(0, 0.8, 0.5, control=0.6), point(0.3, 0.4, 0.5, control=0.55), point(1, 0.0, 0.5, control=0.5)]
    assert [goal.allows(one) for one in points] == [True, True, False]
    assert goal.score(points[1]) == pytest.approx((-0.5 + 1) / 2)
    assert goal.best(points) is points[1]


def test_negation_wants_a_control() -> None:
    with pytest.raises(WeightsmithError, match="--control-data-path"):
        Goal(references=(1.0,), wanted=(False,))


def test_no_coefficient_that_keeps_the_control() -> None:
    goal = Goal(references=(1.0,), wanted=(True,), control=0.9)
    with pytest.raises(WeightsmithError, match="no coefficient keeps 95% of the control's accuracy"):
        goal.best([point(1, 1.0, control=0.5)])


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none(keep: float) -> None:
    with pytest.raises(WeightsmithError, match="--control-keep"):
        Goal(references=(1.0,), wanted=(True,), keep=keep)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_the_best_is_allowed_and_none_allowed_is_better(found: list[tuple[float, float, float]], keep: float) -> None:
    goal = Goal(references=(0.7,), wanted=(True,), control=0.5, keep=keep)
    points = [point(0, 0.2, control=0.5), *(point(c, task, control=control) for c, task, control in found)]
    best = goal.best(points)
    assert goal.allows(best)
    assert all(goal.score(one) <= goal.score(best) for one in points if goal.allows(one))
