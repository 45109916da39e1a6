"""Editors over every family: what they reach, what they leave alone, and the published solve as a special case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta, LowRank, weights_hash
from weightsmith.edit import AlphaEdit, FineTune, HeadEdit, LoRA, default_layers, make_editor
from weightsmith.edit.corrections import Goal
from weightsmith.edit.image_corrections import ImageCorrections
from weightsmith.edit.preserved import right_ones
from weightsmith.edit.targets import TargetOptions, margins
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.measure import misclassified, predict
from weightsmith.models import Model, record
from weightsmith.request import ImageRequest, stack_images, targets
from weightsmith.site import Site


@pytest.fixture
def images(random_set: Callable[..., ImageSet]) -> ImageSet:
    return random_set(80)


def requests_for(model: Model, images: ImageSet, count: int) -> list[ImageRequest]:
    return misclassified(model, images, limit=count)


def reached(model: Model, delta: Delta, requests: list[ImageRequest]) -> torch.Tensor:
    with torch.no_grad(), delta.on(model):
        logits = model.logits(model.preprocess(stack_images(requests)))
    return margins(logits, targets(requests))


def reachable(model: Model, requests: list[ImageRequest]) -> list[ImageRequest]:
    """Those whose class some value of the last map can give: behind a random ReLU that is not certain."""
    goal = Goal("resid.out" if model.family.spreads else "mlp.value", model.n_layers - 1)
    met = ImageCorrections(requests).wanted(model, goal, TargetOptions()).reached.tolist()
    return [request for request, fine in zip(requests, met, strict=True) if fine]


EDITORS = {
    "alphaedit": AlphaEdit(null_fraction=0.9),
    "head, closed form": HeadEdit(closed_form=True, closed_weight=1.0),
    "finetune": FineTune(lr=3e-3, steps=300),
}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_are_reached_and_the_model_is_untouched(
    model: Model, images: ImageSet, tmp_path: Path, name: str, hook_count: Callable[..., int]
) -> None:
    requests = reachable(model, requests_for(model, images, 6))[:3]
    assert len(requests) == 3
    before, hooks = weights_hash(model), hook_count(model.module)
    gradients = [parameter.requires_grad for parameter in model.module.parameters()]
    delta = EDITORS[name].solve(model, requests, images, tmp_path)
    assert weights_hash(model) == before == delta.base
    assert hook_count(model.module) == hooks
    assert [parameter.requires_grad for parameter in model.module.parameters()] == gradients
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert bool((reached(model, delta, requests) > 0).all())
    rows = delta.info["requests"]
    assert [row["sample"] for row in rows] == [request.name for request in requests]
    assert all(row["success"] and row["after"] == row["target"] for row in rows)
    assert all(row["update_norm"] == pytest.approx(delta.norm()) for row in rows)


def test_alphaedit_is_low_rank_in_the_layers_asked_for(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    model = tiny_model("vit")
    requests = requests_for(model, images, 3)
    delta = AlphaEdit(layers=(2, 1)).solve(model, requests, images, tmp_path)
    assert set(delta.changes) == {f"vit.layers.{layer}.mlp.fc2.weight" for layer in (1, 2)}
    for change in delta.changes.values():
        assert isinstance(change, LowRank)
        assert change.left.shape[1] <= min(change.shape)
    attention = AlphaEdit(layers=(2,), component="attn.value").solve(model, requests, images, tmp_path)
    assert set(attention.changes) == {"vit.layers.2.attention.o_proj.weight"}


def test_the_published_solve_is_a_special_case(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    """One round in one layer with absolute parameters: ΔW = R Kᵀ P (K Kᵀ P + L2 I)⁻¹, written out with d×d matrices."""
    model = tiny_model("vit", seed=3)
    requests = requests_for(model, images, 4)
    layer = model.n_layers - 1
    editor = AlphaEdit(
        layers=(layer,), null_threshold=0.5, null_fraction=None, null_floor=None, ridge=None, l2=2.0, rounds=1
    )
    delta = editor.solve(model, requests, images, tmp_path)
    key, value = Site("mlp.key", layer, tokens="cls"), Site("resid.out", layer, tokens="cls")
    pixels = model.preprocess(stack_images(requests))
    preserved = right_ones(model, images)
    with torch.no_grad():
        seen = record(model, pixels, [key, value, Site("resid.out", layer)])
        k0 = record(model, model.preprocess(preserved.pixels()), [key])[key][:, 0].double()
    options = TargetOptions(margin=0.1, steps=100, lr=0.05)
    goal = ImageCorrections(requests).wanted(model, Goal("resid.out", layer), options)
    k = seen[key][:, 0].double().T
    r = (goal.values - seen[value][:, 0]).double().T
    values, vectors = torch.linalg.eigh(k0.T @ k0 / len(k0))
    free = vectors[:, values < 0.5]
    p = free @ free.T
    expected = r @ k.T @ p @ torch.linalg.inv(k @ k.T @ p + 2.0 * torch.eye(len(k), dtype=k.dtype))
    found = delta.changes[f"vit.layers.{layer}.mlp.fc2.weight"].dense()
    assert torch.linalg.norm(found - expected) < 1e-5 * torch.linalg.norm(expected)  # the values are float32


def test_preserved_keys_hardly_move_under_a_null_space_edit(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    """ΔW·k₀ is far smaller on preserved keys than on the edited ones; with a ridge alone it is not."""
    model = tiny_model("vit")
    requests = requests_for(model, images, 2)
    layer = model.n_layers - 1
    delta = AlphaEdit(layers=(layer,), null_fraction=0.5).solve(model, requests, images, tmp_path)
    change = delta.changes[f"vit.layers.{layer}.mlp.fc2.weight"].dense().float()
    key = Site("mlp.key", layer, tokens="cls")
    with torch.no_grad():
        preserved = record(model, model.preprocess(right_ones(model, images).pixels()), [key])[key][:, 0]
        edited = record(model, model.preprocess(stack_images(requests)), [key])[key][:, 0]
    moved = (preserved @ change.T).norm(dim=1).square().mean().sqrt()
    wanted = (edited @ change.T).norm(dim=1).square().mean().sqrt()
    assert moved < 0.5 * wanted


def test_head_editing_weighs_what_it_is_told(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    """A stronger consolidation moves the classifier less; both the relative and the absolute weight are honoured."""
    model = tiny_model("vit")
    requests = requests_for(model, images, 4)
    for field, weights in (("ewc_strength", (0.01, 1.0, 100.0)), ("ewc_lambda", (0.1, 10.0, 1e4))):
        norms = [HeadEdit(**{field: weight}).solve(model, requests, images, tmp_path).norm() for weight in weights]
        assert norms[0] > norms[1] > norms[2]


def test_head_editing_stops_when_every_margin_is_met(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    model = tiny_model("vit")
    requests = requests_for(model, images, 2)
    delta = HeadEdit(ewc_strength=1e-6, head_steps=2000).solve(model, requests, images, tmp_path)
    assert delta.info["steps"] < 2000
    assert bool((reached(model, delta, requests) >= 0.1 - 1e-4).all())


def test_fisher_information_is_that_of_brute_force(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    from weightsmith.edit.head import _fisher

    model = tiny_model("vit")
    chosen = images.subset(range(6))
    weight, bias = model.module.classifier.weight, model.module.classifier.bias
    expected = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for pixels, _ in chosen.batches(1):
        logits = model.logits(model.preprocess(pixels))[0]
        for label, probability in enumerate(logits.softmax(-1).detach()):
            gradients = torch.autograd.grad(logits.log_softmax(-1)[label], (weight, bias), retain_graph=True)
            expected = [e + probability * g**2 / len(chosen) for e, g in zip(expected, gradients, strict=True)]
    for found, wanted in zip(_fisher(model, chosen, True), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["alphaedit", "head"])
def test_sealed_images_cannot_be_preserved_against(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path, name: str
) -> None:
    model = tiny_model("vit")
    requests = requests_for(model, images, 2)
    with pytest.raises(HeldOutError):
        make_editor(name).solve(model, requests, images.seal(), tmp_path)


def test_bad_requests_and_layers_are_told(tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path) -> None:
    vit, mlp = tiny_model("vit"), tiny_model("mlp")
    requests = requests_for(vit, images, 2)
    with pytest.raises(WeightsmithError, match="nothing to correct"):
        AlphaEdit().solve(vit, [], images, tmp_path)
    with pytest.raises(WeightsmithError, match="layer 9"):
        AlphaEdit(layers=(9,)).solve(vit, requests, images, tmp_path)
    with pytest.raises(WeightsmithError, match="no residual stream"):
        AlphaEdit(layers=(0, 1)).solve(mlp, requests, images, tmp_path)
    with pytest.raises(WeightsmithError, match="exactly one"):
        AlphaEdit(null_fraction=0.5, null_energy=0.1).solve(vit, requests, images, tmp_path)
    wrong = np.flatnonzero(~predict(vit, images).right.numpy())
    with pytest.raises(WeightsmithError, match="nothing to preserve"):
        AlphaEdit().solve(vit, requests, images.subset(wrong), tmp_path)
    with pytest.raises(WeightsmithError, match="did you mean 'alphaedit'"):
        make_editor("alphaedti")


def test_default_layers_are_the_last_ones(tiny_model: Callable[..., Model]) -> None:
    assert default_layers(tiny_model("vit")) == (0, 1, 2)
    assert default_layers(tiny_model("mlp")) == (2,)


def test_fine_tuning_of_chosen_blocks_learns_those_and_the_classifier(
    tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path
) -> None:
    model = tiny_model("vit")
    requests = requests_for(model, images, 3)
    last = f"vit.layers.{model.n_layers - 1}."
    for editor in (
        FineTune(blocks=(model.n_layers - 1,), lr=1e-2, steps=300, kl=1.0),
        LoRA(blocks=(model.n_layers - 1,), lr=3e-2, steps=300, kl=1.0, rank=2),
    ):
        delta = editor.solve(model, requests, images, tmp_path)
        assert {name.startswith(last) for name in delta.changes} == {True, False}
        assert all(name.startswith((last, "classifier.")) for name in delta.changes)
        assert all(row["success"] for row in delta.info["requests"])
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.module.parameters())
    assert all(isinstance(change, LowRank) and change.left.shape[1] == 2 for change in delta.changes.values())
    with pytest.raises(WeightsmithError, match="layer 7"):
        FineTune(blocks=(7,)).solve(model, requests, images, tmp_path)


@pytest.mark.parametrize("name", ["vit", "deit", "mlp"])
@pytest.mark.parametrize("views", [0, 2])
def test_blocks_that_stay_as_they_are_are_run_once(
    name: str, views: int, tiny_model: Callable[..., Model], images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginning at the first learned block learns what running the whole network a step learns."""
    model = tiny_model(name)
    requests = requests_for(model, images, 3)
    editor = FineTune(blocks=(model.n_layers - 1,), lr=1e-3, steps=4, kl=1.0, views=views)
    short = editor.solve(model, requests, images)
    monkeypatch.setattr("weightsmith.edit.finetune._ENTERING_BYTES", 0)
    whole = editor.solve(model, requests, images)
    assert short.changes.keys() == whole.changes.keys()
    for parameter in whole.changes:
        torch.testing.assert_close(
            short.changes[parameter].dense(), whole.changes[parameter].dense(), rtol=1e-3, atol=2e-5
        )


def test_what_holds_fine_tuning_back_does(tiny_model: Callable[..., Model], images: ImageSet, tmp_path: Path) -> None:
    """With a KL term preserved predictions move less than without, at the same edits."""
    model = tiny_model("vit")
    requests, right = requests_for(model, images, 3), right_ones(model, images)
    before = predict(model, right)
    moved = []
    for kl in (0.0, 10.0):
        delta = FineTune(lr=3e-3, steps=400, kl=kl).solve(model, requests, images, tmp_path)
        assert all(row["success"] for row in delta.info["requests"])
        with delta.on(model):
            after = predict(model, right)
        moved.append(float((before.probabilities - after.probabilities).abs().mean()))
    assert moved[1] < 0.8 * moved[0]
