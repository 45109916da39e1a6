"""Attention of CLS beside what the network's own eager attention gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from weightsmith.errors import WeightsmithError
from weightsmith.locate import cls_attention
from weightsmith.models import Model


@pytest.mark.parametrize("family", ["vit", "deit", "narrow_vit"])
def test_equals_eager_attention(family: str, tiny_model: Callable[..., Model]) -> None:
    model = tiny_model(family)
    inputs = torch.randn(2, 3, 8, 8)
    found = cls_attention(model, inputs)
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.module(inputs, output_attentions=True).attentions
    special = model.family.special
    flow = torch.eye(weights[0].shape[-1])
    for layer, heads in enumerate(weights):
        mean = heads.mean(1)
        assert torch.allclose(found.by_layer[:, layer], mean[:, 0, special:], atol=1e-6)
        flow = (mean + torch.eye(mean.shape[-1])) / 2 @ flow
    assert torch.allclose(found.rollout, flow[:, 0, special:], atol=1e-6)
    assert found.layers == tuple(range(len(weights)))


def test_a_last_block_that_asks_from_cls_alone(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("narrow_vit")
    inputs = torch.randn(2, 3, 8, 8)
    whole = cls_attention(model, inputs)
    model.module.vit.layers[-1].rows = 1
    alone = cls_attention(model, inputs)
    assert torch.allclose(whole.rollout, alone.rollout, atol=1e-6)
    assert torch.allclose(whole.by_layer, alone.by_layer, atol=1e-6)


@pytest.mark.parametrize("family", ["mlp", "gpt2"])
def test_without_cls_there_is_none(family: str, tiny_model: Callable[..., Model]) -> None:
    with pytest.raises(WeightsmithError, match="no attention of CLS over patches"):
        cls_attention(tiny_model(family), torch.randn(1, 3, 8, 8))
