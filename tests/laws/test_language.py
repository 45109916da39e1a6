"""Laws of every family that reads text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from weightsmith.models import Model, families, patch, record
from weightsmith.site import Site

TEXT_FAMILIES = sorted(name for name, family in families().items() if family.reads == "text")


@pytest.fixture
def inputs(model: Model, random_inputs: Callable[..., Tensor]) -> Tensor:
    """Three texts of seven tokens."""
    made: Tensor = random_inputs(model, 3)
    return made


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_every_token_is_read_out_as_in_the_full_pass(model: Model, inputs: Tensor) -> None:
    every = model.token_logits(inputs)
    assert every.shape == (*inputs.shape, model.n_classes)
    assert torch.equal(model.read_out(model.run_blocks(0, model.embed(inputs))), every)
    assert torch.equal(every[:, -1], model.logits(inputs))
    for count in (1, 5):  # what follows a text, or pads it, changes nothing of it
        torch.testing.assert_close(model.token_logits(inputs[:, :count]), every[:, :count], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family_name", TEXT_FAMILIES)
def test_a_token_is_seen_by_itself_and_by_those_behind_it_in_the_window(model: Model, inputs: Tensor) -> None:
    count = inputs.shape[1]
    for layer in range(model.n_layers):
        entering, out, window = Site("resid.in", layer), Site("attn.out", layer), model.window(layer) or count
        run = record(model, inputs, [entering, out])
        for token in range(count):
            moved = run[entering].clone()
            moved[:, token] = moved[:, token].roll(1, -1) * 2
            with patch(model, {entering: moved}):
                changed = (record(model, inputs, [out])[out] - run[out]).abs().amax((0, 2)) > 1e-6
            assert changed.tolist() == [0 <= reader - token < window for reader in range(count)], f"{entering}@{token}"
