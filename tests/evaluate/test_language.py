from __future__ import annotations

import math

import pytest
import torch

from weightsmith import Delta
from weightsmith.delta import Dense
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import drift, perplexity
from weightsmith.models import Model


@pytest.fixture
def windows() -> list[torch.Tensor]:
    """Eight windows of 9 tokens, and two of 5: a token counts, not a window."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 290, shape, generator=generator) for shape in ((8, 9), (2, 5))]


@pytest.fixture
def edit(text_model: Model) -> Delta:
    name, parameter = next(
        (n, p) for n, p in text_model.module.named_parameters() if "mlp" in n and n.endswith("weight")
    )
    return Delta({name: Dense(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))})


@torch.no_grad()
def test_perplexity_is_of_tokens(text_model: Model, windows: list[torch.Tensor]) -> None:
    losses = [
        -float(text_model.module(ids[None, :k]).logits[0, -1].double().log_softmax(-1)[ids[k]])
        for batch in windows
        for ids in batch
        for k in range(1, len(ids))
    ]
    assert perplexity(text_model, windows) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert perplexity(text_model, iter(windows)) == perplexity(text_model, windows)


@torch.no_grad()
def test_drift_is_the_divergence_of_before_from_after(
    text_model: Model, windows: list[torch.Tensor], edit: Delta
) -> None:
    def said() -> list[torch.Tensor]:
        return [text_model.module(ids).logits.double().log_softmax(-1) for ids in windows]

    before = said()
    with edit.on(text_model):
        after = said()
        worn = drift(text_model, windows)
    by_token = [(old.exp() * (old - new)).sum(-1).flatten() for old, new in zip(before, after, strict=True)]
    expected = float(torch.cat(by_token).mean())
    assert expected > 0.001
    assert drift(text_model, windows, edit) == pytest.approx(expected, rel=1e-9)
    assert worn == pytest.approx(expected, rel=1e-9)
    assert drift(text_model, windows, 0.0 * edit) == 0
    assert perplexity(text_model, windows) != pytest.approx(math.inf)


def test_a_broken_model_has_no_end_of_perplexity(text_model: Model, windows: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in text_model.module.named_parameters():
            if name.endswith(("ln_f.weight", "model.norm.weight")):
                parameter.mul_(1e5)
    assert perplexity(text_model, windows) == math.inf


def test_what_cannot_be_measured_is_told(text_model: Model, windows: list[torch.Tensor], edit: Delta) -> None:
    for nothing in ([], [windows[0][:0]]):
        with pytest.raises(WeightsmithError, match="there is no text to measure on"):
            perplexity(text_model, nothing)
    for shape in ((1, 1), (1, 60), (3,)):
        with pytest.raises(WeightsmithError, match="T from 2 to 48"):
            perplexity(text_model, [torch.ones(shape, dtype=torch.int64)])
    with pytest.raises(WeightsmithError, match="the model wears no delta"):
        drift(text_model, windows)
    with pytest.raises(WeightsmithError, match="made for other weights"):
        drift(text_model, windows, Delta(edit.changes, base="another"))
