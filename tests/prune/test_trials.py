"""Trials against the smaller models themselves, written by `removed` and run whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from weightsmith.circuit import UNIT_KINDS, Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import HeldOutError, WeightsmithError, WrongWeightsError
from weightsmith.models import Model, count_blocks
from weightsmith.prune import Trials, key_statistics, removed, shape_of


@torch.no_grad()
def run_whole(model: Model, smaller: Model, images: ImageSet) -> Tensor:
    """(n,) KL(model ‖ smaller), nats."""
    inputs = model.preprocess(images.pixels()).double()
    clean, said = (one.logits(inputs).log_softmax(-1) for one in (model, smaller))
    return (clean.exp() * (clean - said)).sum(-1)


def drawn(model: Model, count: int, seed: int) -> list[Kept]:
    """What is kept when a few units go, with a head left."""
    source, shape = random.Random(seed), shape_of(model)
    units = [unit for kind in UNIT_KINDS for unit in shape.units(kind, 4)]
    found: list[Kept] = []
    while len(found) < count:
        kept = Kept.everything(shape).without(*source.sample(units, source.randint(1, 4)))
        found += [kept] if any(kept.heads) else []
    return found


@pytest.mark.parametrize("family_name", ["vit", "narrow_vit"])
@pytest.mark.parametrize(("fold", "cls_weight"), [("ridge", 0.5), ("mean", 0.0), ("none", 0.5)])
def test_a_trial_is_the_kl_of_the_smaller_model(
    double: Callable[[str], Model], family_name: str, fold: str, cls_weight: float, images: ImageSet
) -> None:
    """Whatever was tried, and gone on with, before."""
    model = double(family_name)
    statistics = None if fold == "none" else key_statistics(model, images)
    trials = Trials(model, statistics, images, fold=fold, cls_weight=cls_weight)
    for step, kept in enumerate(drawn(model, 16, seed=1)):
        smaller = removed(model, kept, statistics, fold=fold, cls_weight=cls_weight)
        wanted = run_whole(model, smaller, images)
        torch.testing.assert_close(trials.kl(kept), wanted, rtol=0, atol=1e-9)
        assert wanted.max() > 1e-4
        if step % 3 == 0:
            trials.advance(kept)
            torch.testing.assert_close(trials.kl(kept), wanted, rtol=0, atol=1e-9)


def test_the_whole_model_is_where_it_starts(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    trials = Trials(model, None, images, fold="none")
    with torch.no_grad():
        logits = model.logits(model.preprocess(images.pixels()).double())
    torch.testing.assert_close(trials.clean, logits.log_softmax(-1), rtol=0, atol=1e-12)
    assert not trials.clean.requires_grad
    assert trials.kl(Kept.everything(trials.whole)).max() == 0.0
    assert trials.passes == 1.0


def test_only_blocks_that_change_are_run(double: Callable[[str], Model], images: ImageSet) -> None:
    trials = Trials(double("vit"), key_statistics(double("vit"), images), images)
    everything = Kept.everything(trials.whole)

    def spent(kept: Kept) -> float:
        before = trials.passes
        trials.kl(kept)
        return 3 * (trials.passes - before)

    first, last = everything.without(Unit("head", 0, (0,))), everything.without(Unit("neurons", 2, (1, 2)))
    assert spent(last) == pytest.approx(1)
    assert spent(first) == pytest.approx(3)
    assert spent(first) == pytest.approx(0), "the last trial is there still"
    trials.advance(first)
    both = first.without(Unit("neurons", 2, (1, 2)))
    assert spent(both) == pytest.approx(1), "it goes on from where `first` parts"
    assert spent(first.without(Unit("mlp", 1))) == pytest.approx(2)
    assert spent(everything.without(Unit("block", 1))) == pytest.approx(2), "the whole was left: from the embedding"


@pytest.mark.parametrize("sets", [0.3, 1.0, 1.7])
def test_with_less_memory_trials_are_the_same_and_dearer(
    double: Callable[[str], Model], images: ImageSet, sets: float
) -> None:
    """`sets` of the hidden states that enter all blocks fit."""
    model = double("vit")
    statistics = key_statistics(model, images)
    state = len(images) * model.n_tokens * 16 * 8
    ample, scarce = (Trials(model, statistics, images, memory=memory) for memory in (2**30, int(sets * 3 * state)))
    for kept in drawn(model, 8, seed=2):
        for trials in (ample, scarce):
            trials.advance(kept)
        tried = kept.without(Unit("neurons", 2, (3, 4)), Unit("mlp", 1))
        assert torch.equal(ample.kl(tried), scarce.kl(tried))
        held = [*scarce._pinned.values(), *scarce._trial.values()]
        assert sum(tensor.nbytes for tensors in held for tensor in tensors) <= max(2 * state, sets * 3 * state) + state
    assert scarce.passes > ample.passes


def test_passes_are_block_forwards(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    with count_blocks(model) as count:
        trials = Trials(model, None, images, fold="none")
    assert count() == 0, "the model's own blocks are not run, narrow ones are"
    for kept in drawn(model, 5, seed=3):
        trials.advance(Kept.everything(trials.whole))
        before = trials.passes
        trials.kl(kept)
        whole = Kept.everything(trials.whole)
        same = [kept.heads[i] == whole.heads[i] and kept.neurons[i] == whole.neurons[i] for i in range(3)]
        begin = min(same.index(False), max(i for i in range(3) if kept.heads[i]))
        after = sum(1 for layer in range(begin, 3) if kept.heads[layer] or kept.neurons[layer])
        assert 3 * (trials.passes - before) == pytest.approx(after)


def test_what_a_unit_saves_is_counted_of_what_is_kept(double: Callable[[str], Model], images: ImageSet) -> None:
    trials = Trials(double("vit"), None, images, fold="none")
    everything = Kept.everything(trials.whole)
    mlp, neurons = Unit("mlp", 0), Unit("neurons", 0, (0, 1))
    smaller = removed(trials.model, everything.without(mlp), None, fold="none")
    assert trials.saved(mlp, everything, cls_only=False) == trials.whole.macs() - shape_of(smaller).macs()
    assert trials.saved(neurons, everything.without(mlp)) == 0


def test_bad_input_of_trials_is_told(
    tiny_model: Callable[..., Model],
    double: Callable[[str], Model],
    images: ImageSet,
    random_set: Callable[..., ImageSet],
) -> None:
    model = double("vit")
    statistics = key_statistics(model, images)
    trials = Trials(model, statistics, images)
    everything = Kept.everything(trials.whole)
    broken = double("vit")
    next(broken.module.parameters()).data.fill_(float("nan"))
    for attempt, told in (
        (lambda: Trials(model, None, images), "needs calibration images"),
        (lambda: Trials(model, statistics, images, cls_weight=-1), "cls_weight=-1"),
        (lambda: Trials(model, statistics, images.subset([])), "no images to try"),
        (lambda: Trials(model, statistics, random_set(8, classes=5)), "4 classes and the images 5"),
        (lambda: Trials(tiny_model("deit"), None, images, fold="none"), "from ViT image classifiers only"),
        (lambda: Trials(broken, None, images, fold="none"), "logits that are not finite"),
        (lambda: trials.kl(everything.without(*trials.whole.units("attn"))), "keep at least one head"),
        (lambda: trials.kl(Kept(((7,),) * 3, ((),) * 3)), "head 7 of block 0 cannot be kept"),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
    with pytest.raises(HeldOutError):
        Trials(model, statistics, images.seal())
    with pytest.raises(WrongWeightsError, match="of other weights"):
        Trials(replace(model, module=tiny_model("vit", seed=1).module.double()), statistics, images)
