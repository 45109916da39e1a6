"""Removal against hooks: a narrow model gives what the whole one gives with the removed keys replaced on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError, WrongWeightsError
from weightsmith.models import Model, load, patch
from weightsmith.prune import cls_only, key_statistics, removed, shape_of
from weightsmith.site import Site

FAMILIES = ("vit", "narrow_vit")
PLANS = {
    "heads": (Unit("head", 0, (0,)), Unit("head", 2, (1,))),
    "neurons": (Unit("neurons", 0, (0, 5, 8)), Unit("neurons", 1, (2, 3, 4)), Unit("neurons", 2, tuple(range(9)))),
    "attn": (Unit("attn", 1),),
    "first attn": (Unit("attn", 0),),
    "last attn": (Unit("attn", 2),),
    "mlp": (Unit("mlp", 1),),
    "last mlp": (Unit("mlp", 2),),
    "block": (Unit("block", 1),),
    "first block": (Unit("block", 0),),
    "last blocks": (Unit("block", 1), Unit("block", 2)),
    "much": (Unit("block", 1), Unit("attn", 2), Unit("mlp", 0), Unit("head", 0, (1,)), Unit("neurons", 2, (0, 3))),
}


@pytest.fixture(params=PLANS)
def units(request: pytest.FixtureRequest) -> tuple[Unit, ...]:
    return PLANS[request.param]


def kept_of(model: Model, units: tuple[Unit, ...]) -> Kept:
    return Kept.everything(shape_of(model)).without(*units)


def replaced(model: Model, kept: Kept, value: Callable[[Site], Tensor]) -> dict[Site, Any]:
    """Patches of the whole model that put `value` (d,) of a site in the place of its removed keys, at every token."""
    whole, patches = shape_of(model), {}
    for layer in range(model.n_layers):
        width = whole.head_width
        heads = [column for head in kept.heads[layer] for column in range(head * width, (head + 1) * width)]
        for site, stay in ((Site("attn.z", layer), heads), (Site("mlp.key", layer), list(kept.neurons[layer]))):

            def put(old: Tensor, site: Site = site, stay: list[int] = stay) -> Tensor:
                new = value(site).to(old).expand_as(old).clone()
                new[..., stay] = old[..., stay]
                return new

            patches[site] = put
    return patches


@pytest.mark.parametrize("family_name", FAMILIES)
@torch.no_grad()
def test_with_nothing_folded_removed_keys_are_zero(
    double: Callable[[str], Model], family_name: str, units: tuple[Unit, ...], random_pixels: Callable[..., Tensor]
) -> None:
    model = double(family_name)
    inputs = model.preprocess(random_pixels(4)).double()
    before, kept = weights_hash(model), kept_of(model, units)
    with patch(model, replaced(model, kept, lambda site: torch.zeros(()))):
        wanted = model.logits(inputs)
    narrow = removed(model, kept, None, fold="none")
    torch.testing.assert_close(narrow.logits(inputs), wanted, rtol=1e-9, atol=1e-9)
    assert (narrow.logits(inputs) - model.logits(inputs)).abs().max() > 1e-3
    assert weights_hash(model) == before
    assert narrow.n_layers == len(kept.blocks)
    assert narrow.module.training is False


@pytest.mark.parametrize("family_name", FAMILIES)
@torch.no_grad()
def test_a_mean_fold_holds_removed_keys_at_their_mean(
    double: Callable[[str], Model], family_name: str, units: tuple[Unit, ...], images: ImageSet
) -> None:
    """Of all tokens where the stream is read by an attention behind, of CLS where by the classifier only."""
    model = double(family_name)
    statistics, kept = key_statistics(model, images), kept_of(model, units)
    last = max(layer for layer, heads in enumerate(kept.heads) if heads)

    def mean(site: Site) -> Tensor:
        assert site.layer is not None
        return statistics.by_site[site if site.layer < last else site.at("cls")].mean

    inputs = model.preprocess(images.pixels([0, 7, 20])).double()
    with patch(model, replaced(model, kept, mean)):
        wanted = model.logits(inputs)
    narrow = removed(model, kept, statistics, fold="mean", cls_weight=0.0)
    torch.testing.assert_close(narrow.logits(inputs), wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(removed(model, kept, images, fold="mean", cls_weight=0.0).logits(inputs), narrow.logits(inputs))


@pytest.mark.parametrize("family_name", FAMILIES)
@torch.no_grad()
def test_removing_nothing_changes_no_bit(model: Model, random_inputs: Callable[..., Tensor]) -> None:
    inputs = random_inputs(model, 3)
    for fold in ("ridge", "mean", "none"):
        same = removed(model, Kept.everything(shape_of(model)), None, fold=fold)
        assert torch.equal(same.logits(inputs), model.logits(inputs))
        assert same.family.name == "narrow_vit"
        assert same.module is not model.module
    ours = {parameter.data_ptr() for parameter in model.module.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in same.module.parameters()), "weights are shared"


@torch.no_grad()
def test_neurons_that_follow_from_the_others_go_without_a_trace(double: Callable[..., Model], images: ImageSet) -> None:
    """In one block a neuron that is constant and one that doubles another; in another the same head twice."""
    model = double()
    state = model.module.state_dict()
    for name in ("weight", "bias"):
        up = state[f"vit.layers.0.mlp.fc1.{name}"]
        up[3] = up[11]
        if name == "weight":
            up[5] = 0.0
        for part in "qkv":
            rows = state[f"vit.layers.1.attention.{part}_proj.{name}"]
            rows[8:] = rows[:8]
    model.module.load_state_dict(state)
    kept = kept_of(model, (Unit("neurons", 0, (3, 5)), Unit("head", 1, (1,))))
    inputs = model.preprocess(images.pixels([1, 2, 3])).double()
    wanted = model.logits(inputs)
    for ridge, near in ((1e-10, 1e-5), (1e-3, 0.1)):
        narrow = removed(model, kept, images, ridge=ridge)
        assert (narrow.logits(inputs) - wanted).abs().max() < near * wanted.abs().max()
    without = removed(model, kept, images, fold="none")
    assert (without.logits(inputs) - wanted).abs().max() > 0.1


@torch.no_grad()
def test_a_ridge_fold_is_nearer_than_a_mean_fold(double: Callable[..., Model], images: ImageSet) -> None:
    model = double()
    kept = kept_of(model, (Unit("head", 1, (0,)), Unit("neurons", 0, tuple(range(8))), Unit("neurons", 1, (1, 2))))
    wanted = model.logits(model.preprocess(images.pixels()).double())
    misses = [
        float((removed(model, kept, images, fold=fold).logits(model.preprocess(images.pixels()).double()) - wanted)
        .square().mean())
        for fold in ("ridge", "mean", "none")
    ]  # fmt: skip
    assert misses[0] < 0.9 * misses[1]
    assert misses[1] < misses[2]


@torch.no_grad()
def test_removing_twice_is_removing_once(double: Callable[..., Model], random_pixels: Callable[..., Tensor]) -> None:
    model = double()
    inputs = model.preprocess(random_pixels(3)).double()
    once = removed(model, kept_of(model, PLANS["much"]), None, fold="none")
    first = removed(model, kept_of(model, (Unit("block", 1), Unit("mlp", 0))), None, fold="none")
    rest = (Unit("attn", 1), Unit("head", 0, (1,)), Unit("neurons", 1, (0, 3)))  # block 2 is now block 1
    twice = removed(first, kept_of(first, rest), None, fold="none")
    torch.testing.assert_close(twice.logits(inputs), once.logits(inputs), rtol=1e-9, atol=1e-9)
    assert shape_of(twice) == shape_of(once)


# --- cost -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_parameters_and_macs_are_those_that_torch_counts(
    tiny_model: Callable[..., Model], units: tuple[Unit, ...], random_inputs: Callable[..., Tensor]
) -> None:
    model = tiny_model("vit")
    kept = kept_of(model, units)
    shape = kept.shape(shape_of(model))
    narrow = removed(model, kept, None, fold="none")
    assert shape_of(narrow) == shape
    for small in (narrow, cls_only(narrow)):
        assert shape.parameters() == sum(parameter.numel() for parameter in small.module.parameters())
        module: Any = small.module
        module.set_attn_implementation("eager")  # the counter sees nothing in the fused attention
        with FlopCounterMode(display=False) as counter:
            small.logits(random_inputs(small, 2))
        assert counter.get_total_flops() == 2 * 2 * shape.macs(cls_only=small is not narrow)
    assert shape.macs(cls_only=True) < shape.macs() < shape_of(model).macs()


# --- the CLS row alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_cls_row_alone_gives_the_same_logits(
    tiny_model: Callable[..., Model], family_name: str, random_inputs: Callable[..., Tensor], attention: str
) -> None:
    model = tiny_model(family_name)
    module: Any = model.module
    module.set_attn_implementation(attention)
    inputs = random_inputs(model, 5)
    for whole in (model, removed(model, kept_of(model, (Unit("attn", 2), Unit("mlp", 1))), None, fold="none")):
        short = cls_only(whole)
        wanted = whole.logits(inputs)
        assert (short.logits(inputs) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        again = removed(short, Kept.everything(shape_of(short)), None)
        assert torch.equal(again.logits(inputs), short.logits(inputs)), "what is removed later keeps it"


# --- what cannot be done --------------------------------------------------------------------------------------------


def test_what_cannot_be_removed_is_told(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    model = tiny_model("vit")
    kept = kept_of(model, (Unit("head", 0, (0,)),))
    for attempt, told in (
        (lambda: removed(model, kept_of(model, tuple(shape_of(model).units("attn"))), images), "at least one head"),
        (lambda: removed(model, kept, None), "needs calibration images"),
        (lambda: removed(model, kept, images, fold="median"), "fold='median'"),
        (lambda: removed(model, kept, images, cls_weight=2.0), "cls_weight=2.0"),
        (lambda: removed(tiny_model("deit"), kept, images), "from ViT image classifiers only"),
        (lambda: cls_only(tiny_model("gpt2")), "from ViT image classifiers only"),
        (lambda: removed(model, Kept(((5,),) * 3, ((),) * 3), images), "head 5 of block 0 cannot be kept"),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
    with pytest.raises(HeldOutError):
        removed(model, kept, images.seal())
    with pytest.raises(WrongWeightsError, match="of other weights"):
        removed(model, kept, key_statistics(tiny_model("vit", seed=1), images))


def test_sites_of_what_was_removed_are_told(
    tiny_model: Callable[..., Model], random_inputs: Callable[..., Tensor]
) -> None:
    from weightsmith.locate.grids import heads, layers
    from weightsmith.models import record

    whole = tiny_model("vit")
    model = removed(whole, kept_of(whole, (Unit("attn", 1), Unit("mlp", 2))), None, fold="none")
    assert {site.layer for site in model.sites() if site.kind == "attn.out"} == {0, 2}
    assert {site.layer for site in model.sites() if site.kind == "mlp.key"} == {0, 1}
    assert [site.layer for site in layers(model, "attn.out", windows=(2,))] == [0, 2]
    assert {site.layer for site in heads(model)} == {0, 2}
    inputs = random_inputs(model, 2)
    run = record(model, inputs, model.sites())
    assert torch.equal(run.logits, model.logits(inputs))
    for attempt in (
        lambda: record(model, inputs, [Site("attn.z", 1)]),
        lambda: model.linear("mlp.value", 2),
    ):
        with pytest.raises(WeightsmithError, match="that part of it was removed"):
            attempt()


def test_a_given_name_and_the_preprocessing_stay(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("vit")
    model = replace(model, encode=replace(model.preprocess, mean=(0.1, 0.2, 0.3)), class_names=("a", "b", "c", "d"))
    config: Any = model.module.config
    config.id2label = dict(enumerate(model.class_names))
    narrow = removed(model, kept_of(model, (Unit("block", 0),)), None, fold="none")
    assert (narrow.preprocess, narrow.class_names) == (model.preprocess, model.class_names)
    assert load(narrow.module).class_names == model.class_names
