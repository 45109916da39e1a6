"""Trials: what removing something does to a model's answers, at the price of the blocks that it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.batches import Fitting
from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune.removal import calibrated, shape_of
from weightsmith.prune.statistics import KeyStatistics
from weightsmith.prune.sublayers import ATTENTION, MLP, Narrower, last_attention

MEMORY = 2**30
"""Bytes of hidden states that are kept when nobody says otherwise, and as much again at most of folded maps."""

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class _BlockPlan:
    """What a block computes; two plans that are equal give the same output for the same input.

    Attributes:
        heads, neurons: that stay.
        reads: "tokens", or from the last attention on "cls", where the fold has other statistics too.
    """

    layer: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    reads: str


_Route = tuple[_BlockPlan, ...]
"""The blocks that were run before a hidden state; () is the embedding."""


class Trials:
    """Runs smaller models over the same images, each from the first block in which it differs from what was run before.

    What runs are the narrow, folded blocks that `removed` would write, so that a trial says what the smaller model will
    do. From the last attention on only CLS is computed, for nothing else reaches the classifier.

    Hidden states are kept of one model, the one that was last given to `advance` (at first the whole one), and of the
    last trial, so that going on with it costs nothing. That is at most 2 · layers · images · tokens · width numbers;
    where it exceeds `memory`, states are kept only before every second, third, … block, and trials start earlier.

    Args:
        statistics: of the model's keys; None needs `fold="none"`.
        images: open ones; read once.
        fold, ridge, cls_weight: as for `removed`.
        memory: bytes for hidden states, and again as much for folded maps.

    Attributes:
        whole: the model's sizes.
        clean: (n, classes) float64 log-probabilities of the whole model.

    Raises:
        HeldOutError: sealed images.
        WrongWeightsError: statistics of another model.
        WeightsmithError: a model that is no ViT, no images, images of other classes, nothing to fold with, or logits that
            are not finite.
    """

    def __init__(
        self,
        model: Model,
        statistics: KeyStatistics | None,
        images: ImageSet,
        *,
        fold: str = "ridge",
        ridge: float = 1e-3,
        cls_weight: float = 0.5,
        memory: int = MEMORY,
    ) -> None:
        images.check_open()
        if len(images) == 0:
            raise WeightsmithError("there are no images to try a smaller model on: give at least one")
        if images.n_classes != model.n_classes:
            raise WeightsmithError(
                f"{model.name} has {model.n_classes} classes and the images {images.n_classes}: give the data that the model "
                "was trained for"
            )
        self.model, self.images, self.whole = model, images, shape_of(model)
        self.statistics = calibrated(model, statistics, fold, needed=True)
        self._narrower = Narrower(model, self.whole, self.statistics, fold, ridge, cls_weight, memory)
        width = next(model.module.parameters()).element_size() * self.whole.width
        states = max(2, memory // (len(images) * self.whole.tokens * width))
        self._every = -(-2 * max(1, len(self.whole.heads)) // states)
        self._passes = 0.0
        self._fitting = Fitting("a smaller model is tried")
        self._pinned: dict[_Route, list[Tensor]] = {(): self._embedded()}
        self._trial: dict[_Route, list[Tensor]] = {}
        everything = Kept.everything(self.whole)
        self.clean = self._log_probabilities(everything)
        if not bool(self.clean.isfinite().all()):
            raise WeightsmithError(
                f"{self.model.name} gives logits that are not finite: train it again, or repair its weights"
            )
        self.advance(everything)

    @property
    def passes(self) -> float:
        """Forward-equivalents over the images so far: blocks run of all blocks of the whole model, the first pass included.

        A block counts as one however narrow it is.
        """
        return self._passes

    @torch.no_grad()
    def kl(self, kept: Kept) -> Tensor:
        """(n,) float64 KL(whole model ‖ smaller model) of each image, nats.

        Raises:
            WeightsmithError: heads or neurons that the model does not have, or no head kept.
        """
        said = self._log_probabilities(kept)
        # Rounding gives the whole model itself −1e-17.
        return (self.clean.exp() * (self.clean - said)).sum(-1).clamp(min=0.0)

    @torch.no_grad()
    def advance(self, kept: Kept) -> None:
        """From now on trials start where they part from this model, instead of the one before; free after its own `kl`."""
        plans = self._plans(kept)
        routes = [plans[:layer] for layer in range(len(plans) + 1) if layer % self._every == 0]
        known = self._pinned | self._trial
        if any(route not in known for route in routes):
            self._log_probabilities(kept)
            known |= self._trial
        self._pinned = {route: known[route] for route in routes}
        self._trial = {}

    def saved(self, unit: Unit, kept: Kept, cls_only: bool = True) -> int:
        """Multiply-adds of an image that removing the unit saves, of what is kept."""
        now, then = (one.shape(self.whole).macs(cls_only) for one in (kept, kept.without(unit)))
        return now - then

    def _plans(self, kept: Kept) -> _Route:
        kept.shape(self.whole)  # refuses what the model does not have
        last = last_attention(kept)
        layers = range(len(self.whole.heads))
        return tuple(
            _BlockPlan(layer, kept.heads[layer], kept.neurons[layer], "tokens" if layer < last else "cls")
            for layer in layers
        )

    @torch.no_grad()
    def _log_probabilities(self, kept: Kept) -> Tensor:
        """(n, classes) float64; the states on the way become those of the last trial."""
        plans = self._plans(kept)
        start = max(
            layer for layer in range(len(plans) + 1) if plans[:layer] in self._pinned or plans[:layer] in self._trial
        )
        given = self._pinned.get(plans[:start]) or self._trial[plans[:start]]
        # What the last trial left beside this one's way goes before anything new is kept.
        self._trial = {route: states for route, states in self._trial.items() if plans[: len(route)] == route}
        blocks = [self._block(kept, plan) for plan in plans[start:]]
        for layer in range(start, len(plans)):
            if (layer + 1) % self._every == 0:
                self._trial[plans[: layer + 1]] = []

        def run(hidden: Tensor) -> tuple[dict[_Route, Tensor], Tensor]:
            states: dict[_Route, Tensor] = {}
            for layer, block in enumerate(blocks, start):
                hidden = block(hidden)
                if (layer + 1) % self._every == 0:
                    states[plans[: layer + 1]] = hidden
            return states, self.model.read_out(hidden).double().log_softmax(-1).cpu()

        said: list[Tensor] = []
        for states, answers in self._fitting.each(run, ((hidden,) for hidden in given)):
            for route, hidden in states.items():
                self._trial[route].append(hidden)
            said.append(answers)
        self._passes += sum(1 for plan in plans[start:] if plan.heads or plan.neurons) / max(1, len(plans))
        return torch.cat(said)

    def _block(self, kept: Kept, plan: _BlockPlan) -> _Block:
        tensors: dict[str, Tensor] = {}
        constants: list[Tensor | None] = [None, None]
        for place, sublayer in enumerate((ATTENTION, MLP)):
            if not self._narrower.members(sublayer, plan.layer):
                continue
            left = self._narrower.narrowed(sublayer, plan.layer, kept)
            if left.tensors:
                tensors |= left.tensors | {f"{sublayer.columns}.bias": left.bias}
            else:
                constants[place] = left.bias
        return _Block(self.model, plan, self.whole.head_width, tensors, *constants)

    def _embedded(self) -> list[Tensor]:
        """What enters the first block, batch by batch."""
        dtype = next(self.model.module.parameters()).dtype
        size = max(1, _BATCH_TOKENS // self.whole.tokens)

        @torch.no_grad()
        def embedded(pixels: Tensor, _labels: Tensor) -> Tensor:
            return self.model.embed(self.model.preprocess(pixels, self.model.device).to(dtype))

        return list(self._fitting.each(embedded, self.images.batches(size)))


class _Block:
    """One narrow block, and the constants that stand for sublayers that went."""

    def __init__(
        self,
        model: Model,
        plan: _BlockPlan,
        head_width: int,
        tensors: dict[str, Tensor],
        before: Tensor | None,
        after: Tensor | None,
    ) -> None:
        like = next(model.module.parameters())
        self.cls_only = plan.reads == "cls"
        self.before, self.after = (None if one is None else one.to(like) for one in (before, after))
        self.layer: nn.Module | None = None
        if tensors:
            self.layer = _narrow_layer(model, plan, head_width)
            self.layer.load_state_dict({name: tensor.to(like) for name, tensor in tensors.items()}, assign=True)
            self.layer.eval()

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, tokens, width) to the same, or to (n, 1, width) where only CLS is read behind."""
        if self.before is not None:
            hidden = hidden + self.before
        if self.layer is not None:
            hidden = self.layer(hidden)
        elif self.cls_only:
            hidden = hidden[:, :1]
        return hidden if self.after is None else hidden + self.after


def _narrow_layer(model: Model, plan: _BlockPlan, head_width: int) -> nn.Module:
    """A block of these widths without weights."""
    from weightsmith.models.narrow_vit import NarrowViTConfig, NarrowViTLayer

    old: Any = model.module.config
    config: Any = NarrowViTConfig(
        hidden_size=old.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=old.num_attention_heads,
        hidden_act=old.hidden_act,
        layer_norm_eps=old.layer_norm_eps,
        qkv_bias=old.qkv_bias,
        attention_heads=[len(plan.heads)],
        mlp_widths=[len(plan.neurons)],
        head_dim=head_width,
        cls_only=plan.reads == "cls",
        attn_implementation=old._attn_implementation,
    )
    with torch.device("meta"):
        layer: nn.Module = NarrowViTLayer(config, 0)
    return layer
