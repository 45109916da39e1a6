"""How long an attention with so many heads and an MLP of such a width take on this machine, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from weightsmith.circuit import Kept, Shape
from weightsmith.measure.cost import still_image
from weightsmith.measure.latency import interleaved
from weightsmith.models import Model
from weightsmith.prune.removal import computes_cls_only, shape_of

WIDTHS = 16
"""MLP widths that are timed, evenly spread from none to the whole."""
_ROUNDS = 15


@dataclass(frozen=True)
class TimeTable:
    """Median milliseconds a batch.

    Attributes:
        batch_size: images.
        attention: (heads, whether CLS alone asks) → of an attention with its norm.
        mlp: (neurons, whether of CLS alone) → of an MLP with its norm.
        rest: of everything else: embedding, final norm, classifier.
        whole: of the whole model, as it was measured beside them.
    """

    batch_size: int
    rest: float
    whole: float
    attention: dict[tuple[int, bool], float] = field(default_factory=dict)
    mlp: dict[tuple[int, bool], float] = field(default_factory=dict)

    def widths(self, most: int) -> list[int]:
        """The MLP widths that were timed, up to so many."""
        return sorted({width for width, _ in self.mlp if width <= most})

    def of(self, kept: Kept, cls_only: bool) -> float:
        """What a smaller model should take, whose MLP widths are among those of the table."""
        last = max(layer for layer, heads in enumerate(kept.heads) if heads)
        total = self.rest
        for layer, (heads, neurons) in enumerate(zip(kept.heads, kept.neurons, strict=True)):
            alone = cls_only and layer >= last
            total += self.attention[len(heads), alone] + self.mlp[len(neurons), alone]
        return total


def time_table(
    model: Model, batch_size: int = 8, multiple: int = 16, rounds: int = _ROUNDS, seed: int = 0
) -> TimeTable:
    """Time every number of heads and a grid of MLP widths by themselves, interleaved with one another and the whole model.

    Weights are random: what a product takes does not depend on them. The times of blocks are scaled by one factor, so that
    those of the whole model add up to what it took.

    Args:
        multiple: of the widths.
    """
    shape = shape_of(model)
    widths = _grid(max(shape.neurons), multiple)
    passes: dict[str, Callable[[], object]] = {}
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.module.parameters()).dtype
    hidden = torch.randn(batch_size, shape.tokens, shape.width, generator=generator).to(model.device, dtype)
    cases = [("attention", n) for n in range(1, max(shape.heads) + 1)] + [("mlp", n) for n in widths]
    for kind, size in cases:
        for alone in (False, True):
            passes[f"{kind} {size} {alone}"] = _pass(_block(model, shape, kind, size, alone), hidden)
    image = still_image(model, batch_size)
    passes["whole"] = lambda: model.logits(image)
    passes["rest"] = lambda: model.read_out(model.embed(image))
    taken = {
        name: float(np.median(row)) for name, row in interleaved(passes, model.device, rounds, 120.0, seed).items()
    }
    attention = {(0, alone): 0.0 for alone in (False, True)}
    mlp = dict(attention)
    for kind, size in cases:
        for alone in (False, True):
            (attention if kind == "attention" else mlp)[size, alone] = taken[f"{kind} {size} {alone}"]
    last = max((layer for layer, heads in enumerate(shape.heads) if heads), default=0)
    blocks = 0.0
    for layer, (heads, neurons) in enumerate(zip(shape.heads, shape.neurons, strict=True)):
        alone = computes_cls_only(model) and layer >= last
        blocks += _near(attention, heads, alone) + _near(mlp, neurons, alone)
    # Parts by themselves find their weights in the cache, or a busy machine: together they take what the blocks take.
    rest = min(taken["rest"], taken["whole"])
    scale = (taken["whole"] - rest) / blocks
    attention, mlp = ({key: ms * scale for key, ms in times.items()} for times in (attention, mlp))
    return TimeTable(batch_size, rest, taken["whole"], attention, mlp)


def _grid(whole: int, multiple: int) -> list[int]:
    """Widths that are timed: multiples, the whole one among them."""
    even = {round(whole * i / WIDTHS / multiple) * multiple for i in range(1, WIDTHS)}
    return sorted({width for width in even if 0 < width < whole} | ({whole} if whole else set()))


def _near(known: dict[tuple[int, bool], float], size: int, alone: bool) -> float:
    sizes = sorted(n for n, of_cls in known if of_cls == alone)
    return float(np.interp(size, sizes, [known[n, alone] for n in sizes]))


def _block(model: Model, shape: Shape, kind: str, size: int, alone: bool) -> nn.Module:
    """A block with one sublayer alone."""
    from weightsmith.models.narrow_vit import NarrowViTConfig, NarrowViTLayer

    old: Any = model.module.config
    config: Any = NarrowViTConfig(
        hidden_size=shape.width,
        num_attention_heads=old.num_attention_heads,
        num_hidden_layers=1,
        hidden_act=old.hidden_act,
        attention_heads=[size if kind == "attention" else 0],
        mlp_widths=[size if kind == "mlp" else 0],
        head_dim=shape.head_width,
        qkv_bias=shape.qkv_bias,
        cls_only=alone,
    )
    config._attn_implementation = old._attn_implementation
    with torch.random.fork_rng(devices=[]):  # a user's draws must not shift
        block: nn.Module = NarrowViTLayer(config, 0)
    return block.to(model.device, next(model.module.parameters()).dtype).eval()


def _pass(block: nn.Module, hidden: torch.Tensor) -> Callable[[], object]:
    return lambda: block(hidden)
