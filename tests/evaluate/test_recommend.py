"""The Pareto front and the choices, case by case."""

from __future__ import annotations

import math

import pytest

from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import Candidate, pareto_front, recommend
from weightsmith.measure import Interval


def candidate(name: str, accuracy: float, milliseconds: float, wide: float = 0.0) -> Candidate:
    return Candidate(
        name,
        Interval(accuracy, accuracy - wide, accuracy + wide, 100),
        Interval(milliseconds, milliseconds * (1 - wide), milliseconds * (1 + wide), 30),
    )


FRONTS = [
    ({"a": (0.9, 10)}, ("a",)),
    ({"a": (0.9, 10), "b": (0.8, 5)}, ("b", "a")),
    ({"a": (0.9, 10), "b": (0.8, 20)}, ("a",)),
    ({"a": (0.9, 10), "b": (0.9, 12)}, ("a",)),  # as accurate and slower: weakly dominated
    ({"a": (0.9, 10), "b": (0.8, 10)}, ("a",)),  # as fast and less accurate
    ({"a": (0.9, 10), "b": (0.9, 10)}, ("a", "b")),  # a tie stays
    ({"a": (0.9, 10), "b": (0.9, 10), "c": (0.95, 9)}, ("c",)),
    ({"a": (0.9, 10), "b": (0.85, 7), "c": (0.84, 8), "d": (0.5, 1)}, ("d", "b", "a")),
]


@pytest.mark.parametrize(("given", "front"), FRONTS)
def test_the_front(given: dict[str, tuple[float, float]], front: tuple[str, ...]) -> None:
    assert pareto_front([candidate(name, *pair) for name, pair in given.items()]) == front


def chosen(given: dict[str, tuple[float, float]], baseline: str = "a", tolerance: float = 1.0, wide: float = 0.0):
    """Recommendations where every interval, of models and of differences, reaches `wide` to both sides."""
    models = {name: candidate(name, *pair, wide) for name, pair in given.items()}

    def change(one: str, other: str) -> Interval:
        value = models[one].accuracy.value - models[other].accuracy.value
        return Interval(value, value - wide, value + wide, 100)

    def ratio(one: str, other: str) -> Interval:
        value = models[one].milliseconds.value / models[other].milliseconds.value
        return Interval(value, value - wide, value + wide, 30)

    return recommend(list(models.values()), baseline, tolerance, change, ratio)


CHOICES = [
    # models, tolerance, (best accuracy, fastest within it, best efficiency)
    ({"a": (0.9, 10)}, 1.0, ("a", "a", "a")),
    ({"a": (0.9, 10), "b": (0.92, 20)}, 1.0, ("b", "a", "a")),
    ({"a": (0.9, 10), "b": (0.895, 5)}, 1.0, ("a", "b", "b")),
    ({"a": (0.9, 10), "b": (0.89, 5)}, 1.0, ("a", "b", "b")),  # just at the tolerance
    ({"a": (0.9, 10), "b": (0.889, 5)}, 1.0, ("a", "a", "b")),
    ({"a": (0.9, 10), "b": (0.889, 5)}, 2.0, ("a", "b", "b")),
    ({"a": (0.9, 10), "b": (0.9, 5)}, 0.0, ("b", "b", "b")),  # of equals the faster
    ({"a": (0.9, 10), "b": (0.95, 8), "c": (0.897, 7), "d": (0.2, 1)}, 1.0, ("b", "c", "d")),
]


@pytest.mark.parametrize(("given", "tolerance", "names"), CHOICES)
def test_the_choices(given: dict[str, tuple[float, float]], tolerance: float, names: tuple[str, ...]) -> None:
    found = chosen(given, tolerance=tolerance)
    assert tuple(one.model for one in found) == names
    assert [one.purpose for one in found] == ["best accuracy", "fastest within the tolerance", "best efficiency"]
    assert all(one.model in str(one) for one in found)
    assert not any("nan" in one.why for one in found)


def test_a_clear_difference_is_called_none_of_noise() -> None:
    best, fast, efficient = chosen({"a": (0.9, 10), "b": (0.895, 5), "c": (0.7, 20)}, wide=0.001)
    assert not any(one.uncertain for one in (best, fast, efficient))
    assert "noise" not in best.why + fast.why + efficient.why
    assert "0.500 times (0.499 to 0.501)" in fast.why
    assert "-0.50 points (-0.60 to -0.40)" in fast.why


def test_intervals_that_overlap_are_told() -> None:
    best, fast, efficient = chosen({"a": (0.9, 10), "b": (0.898, 9.9)}, wide=0.02)
    assert best.uncertain
    assert "holds 0, so the difference may be noise: b is faster" in best.why
    assert fast.model == "b"
    assert fast.uncertain
    assert "holds 1, so it may be no faster" in fast.why
    assert "A loss of more than 1 point cannot be ruled out" in fast.why
    assert efficient.uncertain
    assert "overlap" in efficient.why


def test_the_baseline_may_be_the_fastest() -> None:
    fast = chosen({"a": (0.9, 10), "b": (0.9, 10.1), "c": (0.1, 2)}, wide=0.02)[1]
    assert fast.model == "a"
    assert fast.why.startswith(
        "No model is faster than the baseline a and at most 1 point less accurate; b takes 1.010"
    )
    assert fast.uncertain


def test_a_rival_as_fast_is_named() -> None:
    fast = chosen({"a": (0.9, 10), "b": (0.9, 5), "c": (0.9, 5.01)}, wide=0.005)[1]
    assert fast.model == "b"
    assert "c may be as fast" in fast.why


def test_efficiency_that_is_mere_speed_is_told() -> None:
    efficient = chosen({"a": (0.9, 10), "b": (0.2, 1)}, wide=0.001)[2]
    assert efficient.model == "b"
    assert "rewards speed however little is right" in efficient.why
    assert "-70.00 points" in efficient.why


def test_unknown_bounds_rule_nothing_out() -> None:
    models = [
        Candidate(name, Interval(value, math.nan, math.nan, 1), Interval(time, math.nan, math.nan, 1))
        for name, value, time in (("a", 0.9, 10.0), ("b", 0.8, 5.0))
    ]
    unknown = Interval(0.5, math.nan, math.nan, 1)
    found = recommend(models, "a", 50.0, lambda *_: unknown, lambda *_: unknown)
    assert all(one.uncertain for one in found)
    assert not any("nan" in one.why for one in found)


def test_efficiency() -> None:
    score = candidate("a", 0.8, 4.0, 0.1).efficiency
    assert (score.value, score.low, score.high) == pytest.approx((20.0, 70 / 4.4, 90 / 3.6))


def test_a_baseline_that_is_not_there() -> None:
    with pytest.raises(WeightsmithError, match="the baseline z is none of the models"):
        chosen({"a": (0.9, 10)}, baseline="z")
