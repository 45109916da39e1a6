"""The knapsack against trying every combination."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from weightsmith.prune.search.knapsack import BINS, Choice, allocate

CHOICES = st.lists(
    st.builds(Choice, st.floats(0, 10, allow_nan=False), st.integers(0, 40).map(float)), min_size=1, max_size=4
)


@given(st.lists(CHOICES, min_size=1, max_size=4), st.integers(1, 100))
def test_nothing_within_the_budget_loses_less(groups: list[list[Choice]], budget: int) -> None:
    # Times are whole numbers and the steps divide them, so rounding up changes none where the budget divides BINS.
    budget = next(one for one in range(budget, 0, -1) if BINS % one == 0)
    places = allocate(groups, float(budget))
    sums = [
        (sum(one.loss for one in some), sum(one.time for one in some))
        for some in product(*groups)
        if sum(one.time for one in some) <= budget
    ]
    if places is None:
        assert not sums
        return
    chosen = [group[place] for group, place in zip(groups, places, strict=True)]
    assert sum(one.time for one in chosen) <= budget
    assert sum(one.loss for one in chosen) <= min(loss for loss, _ in sums) + 1e-9


@given(st.lists(CHOICES, min_size=1, max_size=5), st.floats(0.1, 100))
def test_rounding_never_exceeds_the_budget(groups: list[list[Choice]], budget: float) -> None:
    places = allocate(groups, budget)
    if places is not None:
        assert sum(group[place].time for group, place in zip(groups, places, strict=True)) <= budget + 1e-9


def test_no_budget_allows_nothing() -> None:
    assert allocate([[Choice(0.0, 0.0)]], 0.0) is None
