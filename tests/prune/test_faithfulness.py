from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import HeldOutError, WeightsmithError, WrongWeightsError
from weightsmith.models import Model
from weightsmith.prune import (
    CIRCUIT_METRICS,
    FRACTIONS,
    EdgeGraph,
    edge_faithfulness,
    edge_scores,
    faithfulness,
    key_statistics,
    removed,
    run_edges,
    run_units,
    shape_of,
    unit_faithfulness,
)

PLANS = {
    "heads": (Unit("head", 0, (0,)), Unit("head", 2, (1,))),
    "neurons": (Unit("neurons", 0, (0, 5, 8)), Unit("neurons", 2, tuple(range(9)))),
    "last attn": (Unit("attn", 2),),
    "much": (Unit("block", 1), Unit("mlp", 0), Unit("head", 0, (1,)), Unit("neurons", 2, (0, 3))),
}


def table(*curve: float, n: int = 1, start: float = -3.0, scale: float = 2.0) -> Callable[[int], np.ndarray]:
    """A metric whose faithfulness with k kept is `curve[k]`, the same for each of n images."""
    return lambda kept: np.full(n, start + scale * curve[kept])


@pytest.mark.parametrize(
    ("curve", "cpr", "cmd"),
    [((0, 0.5, 1), 0.5, 0.5), ((0, 1, 1), 0.75, 0.25), ((0, 0, 1), 0.25, 0.75), ((0, 2, 1), 1.25, 0.75),
     ((0, -1, 1), -0.25, 1.25)],
)  # fmt: skip
def test_areas_of_known_curves(curve: tuple[float, ...], cpr: float, cmd: float) -> None:
    """Trapezoids by hand, over nothing, half and everything; what overshoots is good for one area and bad for the other."""
    found = faithfulness(table(*curve, n=4), 2, ranked="two", metric="own", fractions=(0, 0.5, 1))
    assert [value.value for value in found.values] == pytest.approx(curve)
    assert (found.cpr.value, found.cmd.value) == (pytest.approx(cpr), pytest.approx(cmd))
    assert (found.counts, found.cpr.n) == ((0, 1, 2), 4)
    assert found.rows()[1] == {
        "ranked": "two", "metric": "own", "fraction": 0.5, "kept": 1, "faithfulness": pytest.approx(curve[1]),
        "low": pytest.approx(curve[1]), "high": pytest.approx(curve[1]),
    }  # fmt: skip
    assert found.summary()["cpr_low"] == pytest.approx(cpr)


def test_the_benchmarks_fractions() -> None:
    """A circuit of one in a hundred that does everything; counts are rounded down and asked for once."""
    asked: list[int] = []

    def measure(kept: int) -> np.ndarray:
        asked.append(kept)
        return np.array([float(kept > 0), float(kept > 0)])

    found = faithfulness(measure, 100, ranked="hundred", metric="own")
    assert found.fractions == FRACTIONS
    assert asked == [0, 1, 2, 5, 10, 20, 50, 100]
    assert found.counts == (0, 0, 0, 0, 1, 2, 5, 10, 20, 50, 100)
    assert found.cpr.value == pytest.approx(1 - (0.005 + 0.01) / 2)
    assert found.cpr.value + found.cmd.value == pytest.approx(1)
    shares = faithfulness(
        lambda kept: np.array([0.0, kept]), 100, ranked="", metric="", fractions=(0.29, 0.57, 1)
    ).counts
    assert shares == (29, 57, 100), "0.29 * 100 is a little less than 29"


def test_the_interval_resamples_images_together() -> None:
    """Of images that agree in ratio but not in size it has no width; of one image it is not known."""
    sizes = np.array([1.0, 5.0, 2.0, 9.0])
    agreed = faithfulness(lambda kept: sizes * kept / 2, 2, ranked="", metric="", fractions=(0, 0.5, 1))
    assert (agreed.values[1].low, agreed.values[1].high) == (pytest.approx(0.5), pytest.approx(0.5))
    apart = faithfulness(
        lambda kept: np.array([0, 1, 0, 1]) * float(kept == 1) + float(kept == 2),
        2,
        ranked="",
        metric="",
        fractions=(0, 0.5, 1),
    )
    assert apart.values[1].low < 0.3 < 0.5 < 0.7 < apart.values[1].high
    assert apart.cpr.low < apart.cpr.value < apart.cpr.high
    one = faithfulness(table(0, 0.5, 1), 2, ranked="", metric="", fractions=(0, 0.5, 1))
    assert math.isnan(one.cpr.low)
    assert one.cpr.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fractions", "told"),
    [((0.0,), "make no curve"), ((0, 0.5, 0.5), "ascending"), ((-0.1, 1), "from 0 to 1"), ((0, 2), "no curve")],
)  # fmt: skip
def test_fractions_that_make_no_curve_are_told(fractions: tuple[float, ...], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        faithfulness(table(0, 1), 1, ranked="", metric="", fractions=fractions)


def test_curves_without_a_scale_are_told() -> None:
    with pytest.raises(WeightsmithError, match="no scale"):
        faithfulness(table(1, 1), 1, ranked="", metric="")
    with pytest.raises(WeightsmithError, match="not finite"):
        faithfulness(table(1, math.nan), 1, ranked="", metric="")
    with pytest.raises(WeightsmithError, match="nothing is ranked"):
        faithfulness(table(1), 0, ranked="", metric="")


@pytest.mark.parametrize("family_name", ["vit", "narrow_vit"])
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_units_at_their_mean_are_a_mean_fold(
    double: Callable[[str], Model], family_name: str, plan: str, images: ImageSet
) -> None:
    model = double(family_name)
    statistics, some = key_statistics(model, images), images.subset([0, 7, 20])
    kept = Kept.everything(shape_of(model)).without(*PLANS[plan])
    wanted = removed(model, kept, statistics, fold="mean", cls_weight=0.0)
    inputs = model.preprocess(some.pixels()).double()
    torch.testing.assert_close(run_units(model, some, kept, statistics), wanted.logits(inputs), rtol=1e-9, atol=1e-9)
    none = run_units(model, some, Kept(((),) * 3, ((),) * 3), statistics)
    torch.testing.assert_close(none, none[:1].expand_as(none), rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", CIRCUIT_METRICS)
@torch.no_grad()
def test_edges_that_matter_are_worth_more_than_the_others(
    double: Callable[[str], Model], images: ImageSet, metric: str
) -> None:
    model, some = double("vit"), images.subset(range(16))
    scores = edge_scores(model, some)
    found = edge_faithfulness(model, some, scores.values, ranked="eap-ig", metric=metric)
    worst = edge_faithfulness(model, some, -scores.values, ranked="worst first", metric=metric)
    assert (found.values[0].value, found.values[-1].value) == (0.0, pytest.approx(1.0))
    if metric == "kl":
        assert found.cpr.value > worst.cpr.value + 0.1
        assert found.cmd.value < worst.cmd.value - 0.1
    clean, empty, half = (
        run_edges(model, some, kept) for kept in (scores.edges, (), scores.best(len(scores.edges) // 2))
    )

    def mean(logits: torch.Tensor) -> float:
        said = logits.log_softmax(-1)
        if metric == "log_probability":
            return float(said[torch.arange(16), torch.from_numpy(some.labels)].mean())
        return float((clean.softmax(-1) * (said - clean.log_softmax(-1))).sum(-1).mean())

    at = FRACTIONS.index(0.5)
    assert found.values[at].value == pytest.approx((mean(half) - mean(empty)) / (mean(clean) - mean(empty)))


def test_units_that_matter_are_worth_more_than_the_others(double: Callable[[str], Model], images: ImageSet) -> None:
    """Ranked by the KL that each alone costs."""
    model, some = double("vit"), images.subset(range(16))
    statistics, whole = key_statistics(model, images), Kept.everything(shape_of(model))
    units = shape_of(model).units("head") + shape_of(model).units("neurons", 6)
    clean = run_units(model, some, whole, None).log_softmax(-1)
    costs = [
        float(
            (clean.exp() * (clean - run_units(model, some, whole.without(unit), statistics).log_softmax(-1)))
            .sum(-1)
            .mean()
        )
        for unit in units
    ]
    best = unit_faithfulness(model, some, units, costs, statistics, ranked="alone")
    worst = unit_faithfulness(model, some, units, [-cost for cost in costs], statistics)
    assert (best.values[0].value, best.values[-1].value) == (0.0, pytest.approx(1.0))
    assert best.cpr.value > worst.cpr.value + 0.1
    assert best.summary()["ranked"] == "alone"


def test_rankings_that_do_not_fit_are_told(
    tiny_model: Callable[..., Model], images: ImageSet, random_set: Callable[..., ImageSet]
) -> None:
    model, some = tiny_model("vit"), images.subset([0, 1])
    units, statistics = shape_of(model).units("head"), key_statistics(model, images)
    edges = EdgeGraph.of(model).edges
    with pytest.raises(WeightsmithError, match=f"3 scores do not rank {len(edges)} edges"):
        edge_faithfulness(model, some, [1, 2, 3])
    with pytest.raises(WeightsmithError, match="not all finite"):
        edge_faithfulness(model, some, [math.nan] * len(edges))
    with pytest.raises(WeightsmithError, match="5 scores do not rank 6 units"):
        unit_faithfulness(model, some, units, [1.0] * 5, statistics)
    with pytest.raises(WeightsmithError, match="did you mean 'kl'"):
        edge_faithfulness(model, some, [1.0] * len(edges), metric="k")
    with pytest.raises(WeightsmithError, match="4 classes and the images 7"):
        unit_faithfulness(model, random_set(7, classes=7), units, [1.0] * 6, statistics, metric="log_probability")
    with pytest.raises(HeldOutError):
        edge_faithfulness(model, some.seal(), [1.0] * len(edges))
    with pytest.raises(WrongWeightsError):
        unit_faithfulness(tiny_model("vit", seed=1), some, units, [1.0] * 6, statistics)
    less = Kept.everything(shape_of(model)).without(units[0])
    with pytest.raises(WeightsmithError, match="give key_statistics"):
        run_units(model, some, less, None)
    with pytest.raises(WeightsmithError, match="no images"):
        run_units(model, some.subset([]), less, statistics)
    with pytest.raises(WeightsmithError, match="no images"):
        edge_faithfulness(model, some.subset([]), [1.0] * len(edges))
