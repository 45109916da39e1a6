"""Unit scores against finite differences of gates that a hook puts on one unit at a time, and against removal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.circuit import UNIT_KINDS, Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError, WeightsmithError, WrongWeightsError
from weightsmith.models import Model, patch
from weightsmith.prune import METHODS, agreement, key_statistics, removed, shape_of, unit_scores
from weightsmith.site import Site

FAMILIES = ("vit", "narrow_vit")


def every_unit(model: Model, group: int = 5) -> list[Unit]:
    return [unit for kind in UNIT_KINDS for unit in shape_of(model).units(kind, group)]


def gated_logits(model: Model, inputs: Tensor, unit: Unit, gate: float, means: dict[Site, Tensor]) -> Tensor:
    """Logits with the unit's keys at μ + gate · (z − μ)."""
    width = shape_of(model).head_width
    head = unit.members[0] if unit.kind == "head" else 0
    columns: dict[str, Any] = {"attn.z": slice(None), "mlp.key": slice(None)}
    columns |= {"head": {"attn.z": slice(head * width, (head + 1) * width)}, "neurons": {"mlp.key": unit.members}}.get(
        unit.kind, {}
    )
    kinds = {"head": ("attn.z",), "attn": ("attn.z",), "neurons": ("mlp.key",), "mlp": ("mlp.key",)}
    patches = {}
    for kind in kinds.get(unit.kind, ("attn.z", "mlp.key")):
        site = Site(kind, unit.layer)

        def put(keys: Tensor, site: Site = site, which: Any = columns[kind]) -> Tensor:
            new, mean = keys.clone(), means[site][..., which]
            new[..., which] = mean + gate * (keys[..., which] - mean)
            return new

        patches[site] = put
    with torch.no_grad(), patch(model, patches):
        return model.logits(inputs)


def means_of(model: Model, images: ImageSet, cls_weight: float) -> dict[Site, Tensor]:
    """The mean that stands for removed keys: of CLS alone in the last block."""
    statistics = key_statistics(model, images)
    return {
        Site(kind, layer): statistics.at(kind, layer, cls_weight if layer < model.n_layers - 1 else 1.0).mean
        for kind in ("attn.z", "mlp.key")
        for layer in range(model.n_layers)
    }


def difference(
    model: Model, images: ImageSet, unit: Unit, cls_weight: float, read: Callable[[Tensor], Tensor]
) -> Tensor:
    """(n, …) central difference of what is read from the logits, in the unit's gate."""
    inputs, means = model.preprocess(images.pixels()).double(), means_of(model, images, cls_weight)
    near = 1e-5
    above, below = (read(gated_logits(model, inputs, unit, 1 + step, means)) for step in (near, -near))
    return (above - below) / (2 * near)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_gauss_newton_is_the_fisher_information_of_each_gate(
    double: Callable[[str], Model], family_name: str, images: ImageSet
) -> None:
    """Every kind of unit at once, the mean over classes exact."""
    model, some = double(family_name), images.subset(range(12))
    units = every_unit(model)
    before = weights_hash(model)
    scores = unit_scores(model, some, units, samples=model.n_classes, cls_weight=0.3)
    chances = model.logits(model.preprocess(some.pixels()).double()).softmax(-1).detach()
    for unit, found in scores.by_unit().items():
        slopes = difference(model, some, unit, 0.3, lambda logits: logits.log_softmax(-1))
        assert found == pytest.approx(float(0.5 * (chances * slopes**2).sum(-1).mean()), rel=1e-5, abs=1e-12), unit
    assert scores.values.min() > 1e-8
    assert weights_hash(model) == before
    assert scores.info == {"images": 12, "seed": 0, "passes": 1 + 1 + 2.0 * model.n_classes, "samples": 4}


def test_it_is_the_curvature_of_the_divergence(double: Callable[[str], Model], images: ImageSet) -> None:
    """½ ∂²KL/∂m² at the model, by second differences."""
    model, some = double("vit"), images.subset(range(10))
    unit, inputs, means = Unit("head", 0, (1,)), model.preprocess(some.pixels()).double(), means_of(model, some, 0.5)
    clean = model.logits(inputs).log_softmax(-1).detach()

    def kl(step: float) -> Tensor:
        said = gated_logits(model, inputs, unit, 1 + step, means).log_softmax(-1)
        return (clean.exp() * (clean - said)).sum(-1).mean()

    found = unit_scores(model, some, [unit], samples=4).values[0]
    assert float(found) == pytest.approx(float(kl(1e-4) + kl(-1e-4)) / (2 * 1e-8), rel=1e-3)


def test_fewer_draws_have_the_same_mean(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    units = every_unit(model)
    exact = unit_scores(model, images, units, samples=4).values
    drawn = torch.stack([unit_scores(model, images, units, samples=3, seed=seed).values for seed in range(8)])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], unit_scores(model, images, units, samples=3, seed=1).values)
    torch.testing.assert_close(drawn.mean(0), exact, rtol=0.3, atol=0)
    assert (drawn.mean(0).sum() / exact.sum() - 1).abs() < 0.05


@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_losses_slopes_in_size_and_with_their_sign(
    double: Callable[[str], Model], family_name: str, images: ImageSet
) -> None:
    model, some = double(family_name), images.subset(range(10))
    units = every_unit(model, 9)
    labels = torch.from_numpy(some.labels)
    sizes, signed = (unit_scores(model, some, units, method) for method in ("task-loss", "eap"))
    for unit in units:
        slopes = difference(model, some, unit, 0.5, lambda logits: F.cross_entropy(logits, labels, reduction="none"))
        assert sizes.by_unit()[unit] == pytest.approx(float(slopes.abs().mean()), rel=1e-5)
        assert signed.by_unit()[unit] == pytest.approx(float(-slopes.mean()), rel=1e-5, abs=1e-9)
    assert (sizes.values >= signed.values.abs()).all()
    assert sizes.info["passes"] == 4.0


def test_integrated_slopes_of_all_gates_add_up_to_the_divergence_at_the_end_of_their_path(
    double: Callable[[str], Model], images: ImageSet
) -> None:
    """Completeness (Sundararajan et al., 2017): for one image, over blocks, by their signed sum."""
    from weightsmith.prune.gates import Gates

    model, some = double("vit"), images.subset([3])
    statistics = key_statistics(model, images)
    units = shape_of(model).units("block")
    gates = Gates.of(shape_of(model), units, statistics, 0.5)
    inputs = model.preprocess(some.pixels()).double()
    clean = model.logits(inputs).log_softmax(-1).detach()

    def kl(logits: Tensor) -> list[Tensor]:
        return [(clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)]

    def end(old: Tensor, site: Site) -> Tensor:
        mean = gates.means[site]
        return mean + 0.8 * (old - mean)

    with patch(model, {site: (lambda old, site=site: end(old, site)) for site in gates.means}):
        wanted = float(kl(model.logits(inputs))[0].detach())
    slopes = [gates.slopes(model, inputs, 1 - 0.2 * (step + 0.5) / 40, kl)[0] for step in range(40)]
    assert float(-torch.stack(slopes).mean(0).sum() * 0.2) == pytest.approx(wanted, rel=1e-3)
    found = unit_scores(model, some, units, "eap-ig", statistics=statistics, steps=40)
    torch.testing.assert_close(found.values, torch.stack(slopes).mean(0)[0].abs(), rtol=1e-9, atol=0)
    assert found.info["passes"] == 121.0


@pytest.mark.parametrize("family_name", FAMILIES)
@torch.no_grad()
def test_exact_scores_are_those_of_the_models_without_each_unit(
    double: Callable[[str], Model], family_name: str, images: ImageSet
) -> None:
    model = double(family_name)
    statistics, whole = key_statistics(model, images), shape_of(model)
    units = every_unit(model)
    scores = unit_scores(model, images, units, "exact", statistics=statistics)
    inputs = model.preprocess(images.pixels()).double()
    clean = model.logits(inputs).log_softmax(-1)
    for unit, found in scores.by_unit().items():
        smaller = removed(model, Kept.everything(whole).without(unit), statistics, fold="mean")
        said = smaller.logits(inputs).log_softmax(-1)
        assert found == pytest.approx(float((clean.exp() * (clean - said)).sum(-1).mean()), abs=1e-9), unit
    assert scores.info["passes"] < 0.75 * len(units), "the blocks before a unit's own are not run"


def test_magnitudes_and_draws(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    statistics, state = key_statistics(model, images), model.module.state_dict()
    units = [Unit("head", 1, (1,)), Unit("neurons", 2, (3, 7))]
    found = unit_scores(model, images, units, "magnitude", statistics=statistics, cls_weight=0.0)
    head, mlp = state["vit.layers.1.attention.o_proj.weight"][:, 8:], state["vit.layers.2.mlp.fc2.weight"][:, [3, 7]]
    spread = (
        statistics.by_site[Site("attn.z", 1)].covariance.diagonal()[8:],
        statistics.by_site[Site("mlp.key", 2).at("cls")].covariance.diagonal()[[3, 7]],
    )
    wanted = [float((w.norm(dim=0) ** 2 * s).sum().sqrt()) for w, s in zip((head, mlp), spread, strict=True)]
    assert found.values.tolist() == pytest.approx(wanted)
    assert found.info["passes"] == 0.0
    first, again, other = (unit_scores(model, images, units, "random", seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_agreement_sets_every_method_against_exact_removal(double: Callable[[str], Model], images: ImageSet) -> None:
    model = double("vit")
    rows = agreement(model, images, ("head", "neurons"), group=3, samples=4)
    assert [(row["method"], row["kind"]) for row in rows] == [(m, k) for m in METHODS for k in ("head", "neurons")]
    by_row = {(row["method"], row["kind"]): row for row in rows}
    assert by_row["exact", "neurons"]["spearman"] == pytest.approx(1.0)
    assert by_row["exact", "neurons"]["units"] == 24
    assert by_row["gauss-newton", "neurons"]["spearman"] > 0.8
    assert abs(by_row["random", "neurons"]["spearman"]) < 0.6
    units = shape_of(model).units("head")
    exact, guess = (unit_scores(model, images, units, method, samples=4) for method in ("exact", "gauss-newton"))
    assert by_row["gauss-newton", "head"]["spearman"] == pytest.approx(guess.rank_correlation(exact))


def test_bad_input_of_scores_is_told(
    tiny_model: Callable[..., Model], double: Callable[[str], Model], images: ImageSet
) -> None:
    model = double("vit")
    head = [Unit("head", 0, (0,))]
    for attempt, told in (
        (lambda: unit_scores(model, images, head, "gauss-newtn"), "did you mean 'gauss-newton'"),
        (lambda: unit_scores(model, images, head, samples=0), "samples=0"),
        (lambda: unit_scores(model, images, head, "eap-ig", steps=0), "steps=0"),
        (lambda: unit_scores(model, images, []), "no units to score"),
        (lambda: unit_scores(model, images.subset([]), head), "no images to score"),
        (lambda: unit_scores(model, images, [Unit("head", 0, (2,))]), r"no unit head\[0,2\]"),
        (lambda: unit_scores(model, images, [Unit("neurons", 1, (3, 24))]), r"no unit neurons\[1,3,24\]"),
        (lambda: unit_scores(model, images, [Unit("block", 3)]), r"no unit block\[3\]"),
        (lambda: unit_scores(tiny_model("gpt2"), images, head), "from ViT image classifiers only"),
        (lambda: agreement(model, images, ()), "no units of the kinds"),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            attempt()
        assert "\n" not in str(error.value)
    for method in METHODS:
        with pytest.raises(HeldOutError):
            unit_scores(model, images.seal(), head, method)
    with pytest.raises(WrongWeightsError, match="of other weights"):
        unit_scores(model, images, head, statistics=key_statistics(tiny_model("vit", seed=1), images))
