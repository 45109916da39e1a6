from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightsmith.delta import weights_hash
from weightsmith.edit.corrections import Goal
from weightsmith.edit.image_corrections import ImageCorrections
from weightsmith.edit.targets import TargetOptions, TargetValues, logits_to_reach, margins
from weightsmith.models import Model, patch, record
from weightsmith.request import ImageRequest
from weightsmith.site import Site

# --- logits --------------------------------------------------------------------------------------------------------

logit_rows = st.integers(2, 7).flatmap(lambda n: st.lists(st.floats(-5, 5), min_size=n, max_size=n))


def projected(logits: np.ndarray, target: int, margin: float) -> np.ndarray:
    """Least ‖x − z‖² with x_t − x_j ≥ margin: of every set of others that end at the margin, the best that is allowed."""
    others = [j for j in range(len(logits)) if j != target]
    best, least = logits, np.inf
    for size in range(len(others) + 1):
        for held in combinations(others, size):
            x = logits.copy()
            x[target] = (logits[target] + sum(logits[j] + margin for j in held)) / (1 + size)
            x[list(held)] = x[target] - margin
            allowed = (x[target] - x[others] >= margin - 1e-9).all()
            if allowed and ((x - logits) ** 2).sum() < least:
                best, least = x, ((x - logits) ** 2).sum()
    assert np.isfinite(least)
    return best


@given(logit_rows, st.floats(0, 3), st.data())
@settings(max_examples=60)
def test_the_logits_are_the_nearest_that_meet_the_margin(row: list[float], margin: float, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=torch.float64)
    goal = logits_to_reach(logits, torch.tensor([target]), margin)
    assert float(margins(goal, torch.tensor([target]))) >= margin - 1e-9
    np.testing.assert_allclose(goal[0].numpy(), projected(np.array(row), target, margin), atol=1e-8)


@given(logit_rows, st.floats(0, 3), st.data())
def test_logits_that_meet_the_margin_stay(row: list[float], margin: float, data: st.DataObject) -> None:
    target = torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    logits = torch.tensor([row], dtype=torch.float64)
    goal = logits_to_reach(logits, target, margin)
    torch.testing.assert_close(logits_to_reach(goal, target, margin), goal, rtol=0, atol=1e-12)
    if float(margins(logits, target)) >= margin:
        assert torch.equal(goal, logits)


def test_each_row_of_logits_is_solved_by_itself() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 5
    together = logits_to_reach(logits, targets, 0.5)
    alone = torch.cat([logits_to_reach(logits[i : i + 1], targets[i : i + 1], 0.5) for i in range(6)])
    assert torch.equal(together, alone)
    assert torch.equal(logits, torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))


def test_the_margin_is_the_lead_over_the_best_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]


# --- values --------------------------------------------------------------------------------------------------------


def sites(model: Model) -> list[Site]:
    """Where goals are stated: behind each block, or in a network without a residual stream at each linear map."""
    kinds = ["resid.out", "mlp.value"] if model.family.spreads else ["mlp.value"]
    return [Site(kind, layer) for kind in kinds for layer in range(model.n_layers)]


def logits_with(model: Model, inputs: Tensor, site: Site, values: Tensor) -> Tensor:
    """A full pass with the lookup token of the site set to the values: the slow, obvious way."""
    lookup = model.lookup(site.kind, site.layer)
    shaped = values if lookup.tokens is None else values[:, None]
    with torch.no_grad(), patch(model, {lookup: shaped}):
        return model.logits(inputs)


def at_lookup(model: Model, inputs: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The whole activation and the part of it that is moved."""
    lookup = model.lookup(site.kind, site.layer)
    with torch.no_grad():
        run = record(model, inputs, [site, lookup])
    return run[site], run[lookup].flatten(1)


@pytest.fixture
def pixels(random_pixels: Callable[..., Tensor]) -> Tensor:
    return random_pixels(8, seed=3)


@pytest.fixture
def inputs(model: Model, pixels: Tensor) -> Tensor:
    return model.preprocess(pixels)


@pytest.fixture
def wanted(model: Model, inputs: Tensor) -> Tensor:
    """The second choice of the first six images, and for the last two the class they have."""
    with torch.no_grad():
        order = model.logits(inputs).argsort(1, descending=True)
    return torch.cat([order[:6, 1], order[6:, 0]])


OPTIONS = TargetOptions(margin=0.3, steps=200, lr=0.1)


def solved(model: Model, pixels: Tensor, wanted: Tensor, site: Site, options: TargetOptions) -> TargetValues:
    requests = [ImageRequest(str(i), image, int(wanted[i]), 0) for i, image in enumerate(pixels)]
    return ImageCorrections(requests).wanted(model, Goal(site.kind, site.layer), options)


def test_the_values_meet_the_margin_and_hardly_more(
    model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor
) -> None:
    for site in sites(model):
        found = solved(model, pixels, wanted, site, OPTIONS)
        if site.layer == model.n_layers - 1:  # further down a random network a goal can be out of reach
            assert found.reached[:6].sum() >= 4
        lead = margins(logits_with(model, inputs, site, found.values), wanted)
        assert torch.equal(found.reached, lead >= OPTIONS.margin - 1e-4), str(site)
        _, init = at_lookup(model, inputs, site)
        moved = (found.values - init).norm(dim=1) > 0
        tight = found.reached & moved
        assert (lead[tight] <= OPTIONS.margin + 0.05).all(), f"{site}: {lead.tolist()}"


def test_a_little_less_would_not_do(model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor) -> None:
    for site in sites(model):
        found = solved(model, pixels, wanted, site, OPTIONS)
        _, init = at_lookup(model, inputs, site)
        shorter = init + 0.98 * (found.values - init)
        moved = found.reached & ((found.values - init).norm(dim=1) > 0)
        assert (margins(logits_with(model, inputs, site, shorter), wanted)[moved] < OPTIONS.margin).all(), str(site)


def test_samples_that_hold_already_stay_where_they_are(
    model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor
) -> None:
    with torch.no_grad():
        lead = margins(model.logits(inputs), wanted)
    assert (lead[6:] > 0).all()
    options = TargetOptions(margin=float(lead[6:].min()) / 2, steps=30)
    for site in sites(model):
        _, init = at_lookup(model, inputs, site)
        found = solved(model, pixels, wanted, site, options)
        assert found.reached[6:].all()
        assert torch.equal(found.values[6:], init[6:])
        assert not torch.equal(found.values[:6], init[:6])


def test_each_sample_is_solved_by_itself(model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor) -> None:
    """A sample that is done stands still while others go on: alone it ends at the same place."""
    site = sites(model)[-1]
    together = solved(model, pixels, wanted, site, OPTIONS)
    for i in (0, 3, 7):
        alone = solved(model, pixels[i : i + 1], wanted[i : i + 1], site, OPTIONS)
        assert bool(alone.reached) == bool(together.reached[i])
        torch.testing.assert_close(alone.values[0], together.values[i], rtol=1e-3, atol=1e-3)


def test_no_value_goes_beyond_the_clamp(model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor) -> None:
    site = sites(model)[0]
    _, init = at_lookup(model, inputs, site)
    options = TargetOptions(margin=50.0, steps=40, lr=0.1, clamp=0.2, weight_decay=0.0)
    found = solved(model, pixels, wanted, site, options)
    moved = (found.values - init).norm(dim=1) / init.norm(dim=1)
    assert (moved <= 0.2 * (1 + 1e-5)).all()
    assert moved.max() > 0.19
    assert not found.reached.any()
    before, after = (margins(logits_with(model, inputs, site, values), wanted) for values in (init, found.values))
    assert (after > before).all(), "a margin out of reach is approached all the same"


def test_decay_keeps_values_that_cannot_be_reached_short(
    model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor
) -> None:
    site = sites(model)[-1]
    _, init = at_lookup(model, inputs, site)
    lengths = [
        float((solved(model, pixels, wanted, site, TargetOptions(margin=1e3, weight_decay=decay)).values - init).norm())
        for decay in (0.0, 1e3)
    ]
    assert lengths[1] < 0.7 * lengths[0]


def test_no_step_moves_nothing(model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor) -> None:
    site = sites(model)[-1]
    _, init = at_lookup(model, inputs, site)
    found = solved(model, pixels, wanted, site, TargetOptions(margin=0.3, steps=0))
    assert torch.equal(found.values, init)


def test_the_model_is_left_alone(
    model: Model, pixels: Tensor, inputs: Tensor, wanted: Tensor, hook_count: Callable[[torch.nn.Module], int]
) -> None:
    weights, hooks = weights_hash(model), hook_count(model.module)
    for site in sites(model):
        found = solved(model, pixels, wanted, site, OPTIONS)
        assert not found.values.requires_grad
    assert weights_hash(model) == weights
    assert hook_count(model.module) == hooks
    assert all(parameter.grad is None for parameter in model.module.parameters())
    with torch.no_grad():  # as the editors call it
        again = solved(model, pixels, wanted, sites(model)[-1], OPTIONS)
    assert torch.equal(again.values, found.values)
