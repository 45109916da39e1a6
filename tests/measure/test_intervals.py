"""Intervals of means whose samples have several parts, and of repeated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weightsmith.measure.intervals import NOTHING, bootstrap, means, of_runs, proportion, shares

NAN = float("nan")


def middle(columns: np.ndarray) -> np.ndarray:
    return columns.mean(-1)


def test_means_are_over_the_rows_that_have_a_value() -> None:
    table = np.array([[1.0, NAN, 4.0], [0.0, 0.5, NAN], [0.5, 1.0, NAN]])
    first, second, third, all_three = means(table, middle)
    assert [part.value for part in (first, second, third)] == [0.5, 0.75, 4.0]
    assert [part.n for part in (first, second, third, all_three)] == [3, 2, 1, 1]
    assert all_three.value == pytest.approx((0.5 + 0.75 + 4) / 3)
    assert math.isnan(third.low), "one row has no bounds"
    assert math.isnan(all_three.high)
    assert first.low <= 0.5 <= first.high


def test_rows_are_resampled_whole() -> None:
    """As scipy does it: the interval of a measure of two columns that hang together is that of paired resamples."""
    random = np.random.default_rng(0)
    one = random.normal(size=60)
    table = np.stack([one, 2 - one + 0.1 * random.normal(size=60)], 1)
    *columns, total = means(table, lambda values: values.sum(-1))
    for k, found in enumerate(columns):
        expected = stats.bootstrap((table[:, k],), np.mean, n_resamples=8000, method="percentile", random_state=1)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    alone = math.hypot(*(column.high - column.low for column in columns))
    assert total.high - total.low < 0.2 * alone, "they cancel"


def test_rows_that_are_equal_count_as_often_as_they_are_there() -> None:
    shuffled = np.array([[0.0, 1.0]] * 7 + [[1.0, NAN]] * 3)[np.random.default_rng(0).permutation(10)]
    first, second = means(shuffled)
    assert (first.value, first.n) == (pytest.approx(0.3), 10)
    assert (second.value, second.n, second.low) == (1.0, 7, 1.0)


def test_no_rows_and_columns_of_nothing() -> None:
    assert means(np.empty((0, 2)), middle) == [NOTHING] * 3
    nothing, something = means(np.array([[NAN, 1.0], [NAN, 2.0]]))
    assert str(nothing) == str(NOTHING)
    assert something.value == 1.5


@given(st.integers(1, 40), st.booleans())
def test_where_all_rows_agree_the_bounds_are_those_of_so_many_samples(n: int, heads: bool) -> None:
    table = np.full((n, 2), float(heads))
    *columns, combined = shares(table, middle)
    assert columns == [proportion(n * heads, n)] * 2
    assert (combined.value, combined.n) == (float(heads), n)
    assert (combined.low, combined.high) == pytest.approx((columns[0].low, columns[0].high))


def test_where_rows_differ_shares_are_means() -> None:
    table = np.array([[1.0, 0.5], [1.0, 1.0], [1.0, 0.0]])
    first, second, combined = shares(table, middle)
    assert first == proportion(3, 3)
    assert [second, combined] == means(table, middle)[1:]


def test_many_samples_are_drawn_in_pieces_that_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(tables: np.ndarray) -> np.ndarray:
        return tables @ np.array([0.0, 0.5, 1.0])[:, None]

    whole = bootstrap(np.array([5, 3, 9]), tell)
    monkeypatch.setattr("weightsmith.measure.intervals._DRAWN_AT_ONCE", 7)
    assert bootstrap(np.array([5, 3, 9]), tell) == whole


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_repeated_runs_have_students_interval(values: list[float]) -> None:
    found = of_runs([*values, NAN])
    assert found.n == len(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), abs=1e-9)


def test_a_single_run_has_no_bounds() -> None:
    assert of_runs([]) is NOTHING
    assert of_runs([NAN]) is NOTHING
    alone = of_runs([0.3, NAN])
    assert (alone.value, alone.n) == (0.3, 1)
    assert math.isnan(alone.low)
