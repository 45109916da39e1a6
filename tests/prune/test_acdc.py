"""ACDC against the same rules run the slow way: every model written by `removed` and run whole, units one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import t
from torch import Tensor

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune import KeyStatistics, Trials, acdc, key_statistics, removed, shape_of, unit_scores
from weightsmith.scores import UnitScores

FAMILIES = ("vit", "narrow_vit")
HARMLESS = 1e-3


@pytest.fixture
def prunable(double: Callable[[str], Model]) -> Callable[[str], Model]:
    """A tiny model in which some units do next to nothing, as in one that was trained."""

    def make(family_name: str = "vit") -> Model:
        model = double(family_name)
        state = model.module.state_dict()
        with torch.no_grad():
            for layer in range(3):
                state[f"vit.layers.{layer}.mlp.fc2.weight"][:, : 3 * layer + 3] *= HARMLESS
            state["vit.layers.1.attention.o_proj.weight"][:, :4] *= HARMLESS
            state["vit.layers.2.mlp.fc2.weight"] *= HARMLESS
        return model

    return make


@torch.no_grad()
def run_whole(model: Model, kept: Kept, statistics: KeyStatistics, images: ImageSet) -> Tensor:
    """(n,) KL(model ‖ smaller), nats."""
    inputs = model.preprocess(images.pixels()).double()
    clean, said = (one.logits(inputs).log_softmax(-1) for one in (model, removed(model, kept, statistics)))
    return (clean.exp() * (clean - said)).sum(-1)


def upper_bound(kl: Tensor) -> float:
    return float(kl.mean() + t.ppf(0.95, len(kl) - 1) * kl.std() / len(kl) ** 0.5)


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("threshold", [0.003, 0.03])
def test_the_step_rule_removes_what_the_slow_one_does(
    prunable: Callable[[str], Model], family_name: str, threshold: float, images: ImageSet
) -> None:
    model = prunable(family_name)
    whole, statistics = shape_of(model), key_statistics(model, images)
    trials = Trials(model, statistics, images)
    found = acdc(trials, whole, threshold=threshold, rule="step", group=4)

    kept, now, tried = Kept.everything(whole), 0.0, 0
    for layer in (2, 1, 0):
        for kind in ("block", "mlp", "neurons", "attn", "head"):
            for unit in whole.units(kind, 4):
                smaller = kept.without(unit)
                if unit.layer != layer or smaller == kept or not any(smaller.heads):
                    continue
                tried += 1
                new = float(run_whole(model, smaller, statistics, images).mean())
                if new - now < threshold:
                    kept, now = smaller, new
    assert found.kept == kept
    assert found.kl.value == pytest.approx(now, abs=1e-9)
    assert Kept.everything(whole) != kept
    assert len(found.rows) == tried
    assert found.passes < 0.8 * tried, "blocks before a unit's own are not run again"
    assert [row["macs"] for row in found.rows] == sorted((row["macs"] for row in found.rows), reverse=True)
    assert found.rows[-1]["passes"] == found.passes


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("threshold", [0.001, 0.1])
def test_the_divergence_stays_in_the_budget(
    prunable: Callable[[str], Model], family_name: str, upper: bool, threshold: float, images: ImageSet
) -> None:
    model = prunable(family_name)
    whole, statistics = shape_of(model), key_statistics(model, images)
    found = acdc(Trials(model, statistics, images), whole, threshold=threshold, group=4, upper=upper)
    kl = run_whole(model, found.kept, statistics, images)
    assert (upper_bound(kl) if upper else float(kl.mean())) <= threshold + 1e-9
    assert found.kl.value == pytest.approx(float(kl.mean()), abs=1e-9)
    assert found.kl.n == len(images)
    assert found.kept.shape(whole).macs(True) < whole.macs(True)
    assert all(row["bound"] <= threshold for row in found.rows if row["removed"])
    assert found.rows[-1]["macs"] == found.kept.shape(whole).macs(True)


def one_by_one(
    model: Model, statistics: KeyStatistics, images: ImageSet, scores: UnitScores, threshold: float, group: int
) -> Kept:
    """The budget rule without halves: heads and neurons in order, until four in a row do not fit."""
    whole = shape_of(model)
    everything, worth = Kept.everything(whole), scores.by_unit()
    units: Sequence[Unit] = [*whole.units("head"), *whole.units("neurons", group)]

    def price(unit: Unit) -> float:
        saved = whole.macs(True) - everything.without(unit).shape(whole).macs(True)
        return worth[unit] / saved

    kept, misses = everything, 0
    for unit in sorted(units, key=price):
        smaller = kept.without(unit)
        fits = any(smaller.heads) and upper_bound(run_whole(model, smaller, statistics, images)) <= threshold
        kept, misses = (smaller, 0) if fits else (kept, misses + 1)
        if misses == 4:
            break
    return kept


@pytest.mark.parametrize("family_name", FAMILIES)
def test_halves_end_where_one_by_one_does_for_less(
    prunable: Callable[[str], Model], family_name: str, images: ImageSet
) -> None:
    model = prunable(family_name)
    whole, statistics = shape_of(model), key_statistics(model, images)
    scores = unit_scores(
        model, images, [*whole.units("head"), *whole.units("neurons", 3)], samples=4, statistics=statistics
    )
    trials = Trials(model, statistics, images)
    found = acdc(trials, whole, threshold=0.01, kinds=("head", "neurons"), group=3, scores=scores)
    assert found.kept == one_by_one(model, statistics, images, scores, 0.01, 3)
    gone = sum(len(unit.members) > 0 and found.kept.without(unit) == found.kept for unit in scores.units)
    assert gone > 5
    assert len(found.rows) < gone + 4


def test_single_neurons_go_with_those_of_like_score(prunable: Callable[[str], Model], images: ImageSet) -> None:
    """Every third neuron does next to nothing: no group of neighbours is free of the others, groups by score are."""
    model = prunable()
    state = model.module.state_dict()
    with torch.no_grad():
        for layer in range(3):
            state[f"vit.layers.{layer}.mlp.fc2.weight"][:, ::3] *= 1e-6
    whole, statistics = shape_of(model), key_statistics(model, images)
    given: dict[str, Any] = {"threshold": 1e-4, "kinds": ("neurons",), "group": 8, "upper": False}
    by_score = acdc(Trials(model, statistics, images), whole, **given)
    neighbours = unit_scores(model, images, whole.units("neurons", 8), statistics=statistics)
    by_place = acdc(Trials(model, statistics, images), whole, scores=neighbours, **given)
    assert set(range(0, 24, 3)).isdisjoint(by_score.kept.neurons[0])
    assert by_score.kept.shape(whole).macs() < by_place.kept.shape(whole).macs()


def test_a_check_over_other_images_gives_back_what_was_removed_last(
    prunable: Callable[[str], Model], images: ImageSet, random_set: Callable[..., ImageSet]
) -> None:
    """As far along the search's own removals as the bound holds over both sets."""
    model, other = prunable(), random_set(40, seed=5)
    whole, statistics = shape_of(model), key_statistics(model, images)
    few, given = images.subset(range(6)), {"threshold": 0.01, "group": 4, "upper": False}
    loose = acdc(Trials(model, statistics, few), whole, **given)
    found = acdc(Trials(model, statistics, few), whole, check=Trials(model, statistics, other), **given)
    assert float(run_whole(model, loose.kept, statistics, other).mean()) > 0.01
    kl = run_whole(model, found.kept, statistics, other)
    assert 0 < float(kl.mean()) <= 0.01
    assert found.checked is not None
    assert found.checked.value == pytest.approx(float(kl.mean()), abs=1e-9)
    assert found.kl.value == pytest.approx(float(run_whole(model, found.kept, statistics, few).mean()), abs=1e-9)
    assert all(set(mine) >= set(theirs) for mine, theirs in zip(found.kept.neurons, loose.kept.neurons, strict=True))
    assert loose.checked is None
    easy = acdc(Trials(model, statistics, few), whole, check=Trials(model, statistics, few), **given)
    assert easy.kept == loose.kept


def test_a_head_is_always_left_and_a_search_can_be_repeated(prunable: Callable[[str], Model], images: ImageSet) -> None:
    model = prunable()
    trials = Trials(model, key_statistics(model, images), images)
    for rule in ("budget", "step"):
        first = acdc(trials, trials.whole, threshold=1e6, rule=rule)
        assert sum(map(len, first.kept.heads)) >= 1
        assert not any(first.kept.neurons)
        again = acdc(trials, trials.whole, threshold=1e6, rule=rule)
        assert (again.kept, again.kl) == (first.kept, first.kl)
    tight = acdc(trials, trials.whole, threshold=1e-12)
    assert (tight.kept, tight.kl.value) == (Kept.everything(trials.whole), 0.0)
    assert not any(row["removed"] for row in tight.rows)


def test_bad_input_of_acdc_is_told(prunable: Callable[[str], Model], images: ImageSet) -> None:
    model = prunable()
    whole, statistics = shape_of(model), key_statistics(model, images)
    trials, one = Trials(model, statistics, images), Trials(model, statistics, images.subset([0]))
    heads = unit_scores(model, images, whole.units("head"), "magnitude", statistics=statistics)
    other: Any = "steps"
    for attempt, told in (
        *(
            (lambda bad=bad: acdc(trials, whole, threshold=bad), "--acdc-thresholds")
            for bad in (0, -1, math.nan, math.inf)
        ),
        (lambda: acdc(trials, whole, threshold=0.1, rule=other), "did you mean 'step'"),
        (lambda: acdc(trials, whole, threshold=0.1, kinds=("neuron",)), "did you mean 'neurons'"),
        (lambda: acdc(trials, whole, threshold=0.1, kinds=()), "no kind of unit may go"),
        (lambda: acdc(trials, whole, threshold=0.1, group=0), "groups of 0"),
        (lambda: acdc(trials, whole, threshold=0.1, scores=heads), r"say nothing of block\[0\]"),
        (lambda: acdc(one, whole, threshold=0.1), "one image bounds no mean"),
        (lambda: acdc(trials, whole, threshold=0.1, check=one), "one image bounds no mean"),
        (lambda: acdc(trials, whole, threshold=0.1, rule="step", check=one), "a check is of a budget"),
        (
            lambda: acdc(trials, Kept.everything(whole).without(Unit("block", 0)).shape(whole), threshold=1),
            "other sizes",
        ),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert acdc(one, whole, threshold=0.1, upper=False).kl.value <= 0.1
