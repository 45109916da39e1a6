"""Scores, statistics, trials and circuits where memory holds few images at a time: the same but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.memory import memory_for
from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune import (
    METHODS,
    KeyStatistics,
    Trials,
    edge_scores,
    key_statistics,
    run_edges,
    run_units,
    shape_of,
    streams,
    unit_scores,
)
from weightsmith.prune.search.ground import _log_probabilities

Measure = Callable[[Model, ImageSet], Tensor]


def _kept(model: Model) -> Kept:
    return Kept.everything(shape_of(model)).without(Unit("head", 1, (0,)), Unit("mlp", 0))


def _moments(model: Model, images: ImageSet) -> Tensor:
    return torch.cat([one.covariance.flatten() for one in key_statistics(model, images).by_site.values()])


def statistics_of(model: Model, images: ImageSet) -> KeyStatistics:
    return key_statistics(model, images, batch_size=1)


def _units(method: str) -> Measure:
    def scored(model: Model, images: ImageSet) -> Tensor:
        units = list(shape_of(model).units("head"))
        statistics = statistics_of(model, images)
        # As many samples as classes: exact, where fewer are other draws in other batches.
        return unit_scores(model, images, units, method, statistics=statistics, samples=4).values

    return scored


MEASURES: dict[str, Measure] = {
    "key statistics": _moments,
    "the residual stream": lambda model, images: torch.cat([one.flatten() for one in streams(model, images).behind]),
    "a masked model": lambda model, images: run_units(model, images, _kept(model), statistics_of(model, images)),
    "a trial": lambda model, images: Trials(model, statistics_of(model, images), images).kl(_kept(model)),
    "answers and views": lambda model, images: _log_probabilities(model, images, 2),
    **{f"units by {method}": _units(method) for method in METHODS if method not in ("magnitude", "random")},
    **{
        f"edges by {method}, {corruption}": lambda model, images, method=method, corruption=corruption: (
            edge_scores(
                model, images, method=method, loss="task" if method == "eap" else "kl", corruption=corruption, steps=2
            ).values
        )
        for method in ("eap", "eap-ig", "gauss-newton")
        for corruption in ("mean", "swap")
    },
    "a circuit": lambda model, images: run_edges(model, images, [], "swap"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_of_fewer_at_a_time(
    double: Callable[[str], Model], images: ImageSet, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, some = double("vit"), images.subset(range(7))
    whole = MEASURES[name](model, some)
    assert not caplog.records
    with memory_for(3) as passed:
        found = MEASURES[name](model, some)
    assert max(passed) <= 3
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-9)
    assert "memory ran out while" in caplog.text
    with (
        memory_for(0),
        pytest.raises(WeightsmithError, match=r"memory ran out while .*, one at a time: give a smaller"),
    ):
        MEASURES[name](model, some)
