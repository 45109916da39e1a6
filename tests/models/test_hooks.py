"""Passes that end where they have given what was wanted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, count_blocks, patch, record
from weightsmith.models.hooks import record_until
from weightsmith.site import Site

Inputs = Callable[..., Tensor]


@torch.no_grad()
def test_a_pass_that_ends_early_gives_the_bits_of_the_whole_one(
    model: Model, random_inputs: Inputs, hook_count: Callable[[nn.Module], int]
) -> None:
    inputs, sites = random_inputs(model, 3), model.sites()
    whole = record(model, inputs, sites)
    for some in ([site] for site in sites):
        assert torch.equal(record_until(model, inputs, some)[some[0]], whole[some[0]]), some
    together = record_until(model, inputs, [*sites[::-1], sites[0]])
    assert set(together) == set(sites)
    assert all(torch.equal(together[site], whole[site]) for site in sites)
    assert hook_count(model.module) == 0


@torch.no_grad()
def test_no_block_behind_the_last_site_runs(model: Model, random_inputs: Inputs) -> None:
    inputs = random_inputs(model, 3)
    for layer in range(model.n_layers):
        with count_blocks(model) as count:
            record_until(model, inputs, [Site("mlp.key", layer), Site("mlp.key", 0)])
        assert count() == 3 * (layer + 1)
    reached: list[str] = []
    handle = model.module.get_submodule(model.family.classifier).register_forward_hook(
        lambda *_: reached.append("classifier")
    )
    record_until(model, inputs, [Site("mlp.key", model.n_layers - 1)])
    assert reached == []
    record(model, inputs, [Site("mlp.key", model.n_layers - 1)])
    assert reached == ["classifier"]
    handle.remove()


@torch.no_grad()
def test_what_is_patched_is_what_is_read(model: Model, random_inputs: Inputs) -> None:
    inputs, changed, read = random_inputs(model, 2), Site("mlp.value", 0), Site("mlp.key", 1)
    with patch(model, {changed: lambda old: old + 1}):
        assert torch.equal(record_until(model, inputs, [read])[read], record(model, inputs, [read])[read])
        patched = record_until(model, inputs, [read])[read]
    assert not torch.equal(patched, record_until(model, inputs, [read])[read])


def test_no_hook_is_left_after_a_failure(
    model: Model, random_inputs: Inputs, hook_count: Callable[[nn.Module], int]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a user's own")

    inputs = random_inputs(model, 2)
    handle = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a user's own"):
        record_until(model, inputs, [Site("mlp.key", 1)])
    assert hook_count(model.module) == 1
    record_until(model, inputs, [Site("mlp.key", 0)])  # ends before the failure
    handle.remove()
    with pytest.raises(WeightsmithError, match=r"mlp\.key\[9\]"):
        record_until(model, inputs, [Site("mlp.key", 9)])
    assert hook_count(model.module) == 0


def test_a_site_that_no_pass_reaches_is_told(
    tiny_model: Callable[..., Model], random_inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("vit")
    inputs = random_inputs(model, 2)
    block = model.blocks[2]
    monkeypatch.setattr(block, "forward", lambda hidden, *_, **__: hidden)
    with pytest.raises(WeightsmithError, match=r"never reached mlp\.key\[2\]"):
        record_until(model, inputs, [Site("mlp.key", 2), Site("mlp.key", 1)])
