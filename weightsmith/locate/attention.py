"""Where CLS looks: attention over the patches of an image, in single blocks and followed back through all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.site import Site


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of CLS over the patches.

    Attributes:
        layers: the blocks that have attention, in order.
        by_layer: (n, layers, patches) weights of CLS on each patch, mean over heads; with those on the special tokens a
            row sums to one.
        rollout: (n, patches) what of each patch reaches CLS through all blocks, Abnar & Zuidema, Quantifying Attention Flow
            in Transformers, 2020, eq. 1: the product over blocks of ½ A + ½ I, A the mean over heads.
    """

    layers: tuple[int, ...]
    by_layer: Tensor
    rollout: Tensor


@torch.no_grad()
def cls_attention(model: Model, inputs: Tensor) -> Attention:
    """Attention of CLS in a vision transformer, computed from its queries and keys.

    The weights are softmax(q kᵀ / √d) of what the projections give, so they are there whatever implementation of attention
    the network runs.

    Args:
        inputs: (n, channels, size, size) preprocessed images.

    Raises:
        WeightsmithError: a model without a CLS token or without attention.
    """
    family, special = model.family, model.family.special
    if family.cls is None or family.attention is None or family.reads != "images":
        raise WeightsmithError(
            f"{model.name} is a {family.title}, which has no attention of CLS over patches to show: give a vision "
            "transformer with a CLS token"
        )
    layers = tuple(layer for layer in range(model.n_layers) if model.n_heads(layer, "attn.q"))
    if not layers:
        raise WeightsmithError(
            f"no block of {model.name} has attention left, so there is none to show: give a model with heads"
        )
    sites = [Site(kind, layer) for layer in layers for kind in ("attn.q", "attn.k")]
    seen = record(model, inputs, sites)
    rows, flow = [], None
    for layer in layers:
        weights = _weights(seen[Site("attn.q", layer)], seen[Site("attn.k", layer)], model.n_heads(layer, "attn.q"))
        rows.append(weights[:, family.cls, special:])
        asking, tokens = weights.shape[1:]
        # A last block may ask from CLS alone.
        mixed = (weights + torch.eye(tokens, device=weights.device)[:asking]) / 2
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None
    return Attention(layers, torch.stack(rows, 1).cpu(), flow[:, family.cls, special:].cpu())


def _weights(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(n, asking tokens, tokens) attention weights, mean over heads, of projections (n, tokens, heads · width)."""
    query, key = (side.view(*side.shape[:2], heads, -1).transpose(1, 2).float() for side in (query, key))
    weights: Tensor = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    return weights
