from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from weightsmith.circuit import Unit
from weightsmith.errors import WeightsmithError
from weightsmith.scores import UnitScores

HEADS = tuple(Unit("head", layer, (head,)) for layer in range(3) for head in range(2))


def scores_of(*values: float, method: str = "exact", units: tuple[Unit, ...] = HEADS) -> UnitScores:
    return UnitScores(units, torch.tensor(values), method, {"images": 3})


def test_units_by_score_largest_first_and_equals_in_their_order() -> None:
    scores = scores_of(0.5, -1.0, 2.0, 0.5, 0.0, 3.0)
    assert scores.order() == [HEADS[i] for i in (5, 2, 0, 3, 4, 1)]
    assert scores.by_unit()[HEADS[2]] == 2.0
    assert [row["rank"] for row in scores.rows()] == [3, 6, 2, 4, 5, 1]
    assert scores.rows()[1]["unit"] == "head[0,1]"
    assert scores.of(HEADS[4:1:-1]).values.tolist() == [0.0, 0.5, 2.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_the_rank_correlation_is_pearson_of_ranks_whatever_the_order(first: list[float], second: list[int]) -> None:
    a, b = scores_of(*first), scores_of(*map(float, second), method="other")
    turned = b.of(HEADS[::-1])
    found = a.rank_correlation(turned)
    ranks = [rankdata(scores.values.numpy()) for scores in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6))
def test_scores_come_back_from_json_to_the_bit(values: list[float]) -> None:
    scores = UnitScores(HEADS, torch.tensor(values, dtype=torch.float64), "gauss-newton", {"seed": 3})
    back = UnitScores.from_json(json.loads(json.dumps(scores.to_json())))
    assert (back.units, back.method, back.info) == (scores.units, scores.method, scores.info)
    assert torch.equal(back.values, scores.values)


def test_bad_scores_are_told() -> None:
    whole = scores_of(1, 2, 3, 4, 5, 6)
    for attempt, told in (
        (lambda: scores_of(1, 2, 3), "one score a unit"),
        (lambda: scores_of(1, 2, 3, 4, 5, math.nan), r"score of head\[2,1\] is nan"),
        (lambda: scores_of(1, 2, units=(HEADS[0], HEADS[0])), r"head\[0,0\] is scored twice"),
        (lambda: whole.of([Unit("attn", 1)]), r"attn\[1\] has no exact score"),
        (lambda: whole.rank_correlation(scores_of(1, 2, units=HEADS[:2])), "scores of other units"),
        (lambda: UnitScores.from_json({"units": ["head[0,0]"], "method": "m"}), "no unit scores"),
        (lambda: UnitScores.from_json({"units": ["head"], "values": [1], "method": "m"}), "names no unit"),
        (lambda: UnitScores.from_json({"units": ["head[0,0]"], "values": ["x"], "method": "m"}), "no unit scores"),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
