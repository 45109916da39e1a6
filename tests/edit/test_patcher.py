"""The two-stage editor: what it reaches, that a detector opens for one image alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.edit import Patcher
from weightsmith.edit.cls_tail import State, Tail
from weightsmith.edit.neurons import _Memory, remember
from weightsmith.edit.preserved import right_ones
from weightsmith.errors import WeightsmithError
from weightsmith.measure import misclassified, predict
from weightsmith.models import Model
from weightsmith.request import stack_images, targets


@pytest.fixture
def images(random_set: Callable[..., ImageSet]) -> ImageSet:
    return random_set(200)


@pytest.fixture(params=["vit", "deit"])
def vit(request: pytest.FixtureRequest, tiny_model: Callable[..., Model]) -> Model:
    return tiny_model(request.param)


def test_the_tail_is_the_network_behind_the_last_attention(vit: Model, images: ImageSet) -> None:
    state = State.of(vit, (pixels for pixels, _ in images.batches(64)))
    torch.testing.assert_close(Tail(vit)(state), predict(vit, images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new_site", [False, True])
def test_every_request_is_answered_and_the_model_is_untouched(
    vit: Model, images: ImageSet, new_site: bool, hook_count: Callable[..., int]
) -> None:
    requests = misclassified(vit, images, limit=6)
    before, hooks = weights_hash(vit), hook_count(vit.module)
    delta = Patcher(new_site=new_site).solve(vit, requests, images)
    assert weights_hash(vit) == before == delta.base
    assert hook_count(vit.module) == hooks
    assert all(row["success"] for row in delta.info["requests"])
    with torch.no_grad(), delta.on(vit):
        classes = vit.logits(vit.preprocess(stack_images(requests))).argmax(1)
    assert torch.equal(classes, targets(requests))
    assert all(".layers.2." in name or name.startswith("classifier") for name in delta.changes)


def test_without_a_shift_preserved_images_hardly_change(vit: Model, images: ImageSet) -> None:
    """Neurons alone: a detector stays shut on every preserved image, so what changes there is the fold."""
    requests = misclassified(vit, images, limit=3)
    right = right_ones(vit, images)
    delta = Patcher(budget=0.0).solve(vit, requests, images)
    assert delta.info["shift_steps"] == 0
    assert delta.info["memories"] >= 3
    before = predict(vit, right)
    with delta.on(vit):
        after = predict(vit, right)
    assert float((before.classes == after.classes).float().mean()) > 0.9


def test_a_detector_opens_for_its_own_image_alone(vit: Model, images: ImageSet) -> None:
    requests = misclassified(vit, images, limit=3)
    right = right_ones(vit, images)
    tail = Tail(vit)
    asked = State.of(vit, iter([stack_images(requests)]))
    held = State.of(vit, (pixels for pixels, _ in right.batches(64)))
    start = tail.linear(tail.up_name).weight.clone()
    log: dict[str, object] = {}
    nothing = torch.zeros(len(requests), dtype=torch.bool)
    remember(tail, asked, targets(requests), held, Patcher(), log, nothing)
    taken = torch.nonzero((tail.linear(tail.up_name).weight != start).any(1)).flatten()
    assert len(taken) == log["memories"] == 3
    with torch.no_grad():
        openings = tail.linear(tail.up_name)(tail.norm(tail.middle(asked)))[:, taken]
        shut = tail.linear(tail.up_name)(tail.norm(tail.middle(held)))[:, taken]
    assert ((openings > 0).sum(1) == 1).all()
    assert ((openings > 0).sum(0) == 1).all()
    separable = openings.amax(0) > 2.9  # those whose threshold had to be narrowed may brush a preserved image
    assert (shut[:, separable] <= -2.9).all()


def test_the_budget_holds_on_images_that_no_step_saw(vit: Model, images: ImageSet) -> None:
    requests = misclassified(vit, images, limit=6)
    steps = {}
    for budget in (1.5, 20.0):
        info = Patcher(budget=budget, epsilon=1e-2, lr=3e-2).solve(vit, requests, images).info
        assert info["lost_aside"] <= budget
        steps[budget] = info["shift_steps"]
    assert steps[20.0] > steps[1.5]


def test_what_it_cannot_edit_is_refused(
    tiny_model: Callable[..., Model], vit: Model, images: ImageSet, tmp_path: Path
) -> None:
    mlp = tiny_model("mlp")
    with pytest.raises(WeightsmithError, match="needs a vision transformer"):
        Patcher().solve(mlp, misclassified(mlp, images, limit=2), images)
    many = misclassified(vit, images, limit=40)
    with pytest.raises(WeightsmithError, match="give fewer corrections"):
        Patcher(budget=0.0).solve(vit, many, images)


def test_what_a_neuron_does_for_an_earlier_error_is_use(vit: Model, images: ImageSet) -> None:
    """A memory is quiet on every preserved image; it would be the first to be taken, and its error the first forgotten."""
    requests = misclassified(vit, images, limit=4)
    delta = Patcher(budget=0.0, open_for_views=False).solve(vit, requests, images)
    with delta.on(vit):
        tail = Tail(vit).double()
        held = State.of(vit, (pixels for pixels, _ in right_ones(vit, images).batches(64))).double()
        asked = State.of(vit, iter([stack_images(requests)])).double()
    (name,) = [name for name in delta.changes if name.endswith(f"{tail.names[tail.up_name]}.weight")]
    taken = set(torch.nonzero(delta.changes[name].dense().abs().sum(1)).flatten().tolist())
    places = {}
    for holds in (False, True):
        mask = torch.full((len(requests),), holds)
        order = _Memory(tail, asked, targets(requests), held, Patcher(), mask).least_used.tolist()
        places[holds] = sorted(order.index(neuron) for neuron in taken)
    assert len(taken) >= 4
    assert min(places[True]) > min(places[False])
    assert sum(places[True]) > sum(places[False])
