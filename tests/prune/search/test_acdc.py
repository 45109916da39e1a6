"""ACDC against the same rules run the slow way: every model written by `removed` and run whole, units one by one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune import KeyStatistics, Trials, acdc, key_statistics, removed, shape_of, unit_scores

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


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("threshold", [0.003, 0.03])
def test_the_step_rule_removes_what_the_slow_one_does(
    prunable: Callable[[str], Model], family_name: str, threshold: float, images: ImageSet
) -> None:
    model = prunable(family_name)
    whole, statistics = shape_of(model), key_statistics(model, images)
    trials = Trials(model, statistics, images)
    found = acdc(trials, whole, threshold=threshold, group=4)

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


def test_single_neurons_go_with_those_of_like_score(prunable: Callable[[str], Model], images: ImageSet) -> None:
    """Every third neuron does next to nothing: no group of neighbours is free of the others, groups by score are."""
    model = prunable("vit")
    state = model.module.state_dict()
    with torch.no_grad():
        for layer in range(3):
            state[f"vit.layers.{layer}.mlp.fc2.weight"][:, ::3] *= 1e-6
    whole, statistics = shape_of(model), key_statistics(model, images)
    single = unit_scores(model, images, whole.units("neurons", 1), statistics=statistics)
    by_score, by_place = (
        acdc(Trials(model, statistics, images), whole, threshold=1e-7, kinds=("neurons",), group=8, scores=scores)
        for scores in (single, None)
    )
    assert set(range(0, 24, 3)).isdisjoint(by_score.kept.neurons[0])
    assert by_score.kept.shape(whole).macs() < by_place.kept.shape(whole).macs()


def test_a_head_is_always_left_and_a_search_can_be_repeated(prunable: Callable[[str], Model], images: ImageSet) -> None:
    model = prunable("vit")
    trials = Trials(model, key_statistics(model, images), images)
    first, again = (acdc(trials, trials.whole, threshold=1e6) for _ in range(2))
    assert sum(map(len, first.kept.heads)) >= 1
    assert not any(first.kept.neurons)
    assert (again.kept, again.kl) == (first.kept, first.kl)
    with torch.no_grad():
        tight = acdc(trials, trials.whole, threshold=1e-300)
    assert all(row["added"] < 1e-300 for row in tight.rows if row["taken"])


def test_bad_input_of_acdc_is_told(prunable: Callable[[str], Model], images: ImageSet) -> None:
    model = prunable("vit")
    whole, statistics = shape_of(model), key_statistics(model, images)
    trials = Trials(model, statistics, images)
    heads = unit_scores(model, images, whole.units("head"), "magnitude", statistics=statistics)
    for attempt, told in (
        *((lambda bad=bad: acdc(trials, whole, threshold=bad), "above 0") for bad in (0, -1, math.nan, math.inf)),
        (lambda: acdc(trials, whole, threshold=0.1, kinds=("neuron",)), "did you mean 'neurons'"),
        (lambda: acdc(trials, whole, threshold=0.1, kinds=()), "no kind of unit may go"),
        (lambda: acdc(trials, whole, threshold=0.1, group=0), "groups of 0"),
        (lambda: acdc(trials, whole, threshold=0.1, scores=heads), r"say nothing of neurons\[0,0\]"),
        (
            lambda: acdc(trials, Kept.everything(whole).without(Unit("block", 0)).shape(whole), threshold=1),
            "other sizes",
        ),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
