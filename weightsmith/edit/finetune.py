"""Fine-tuning on the requests: plain, held back by what is preserved, in all weights or in low-rank adapters.

These are the baselines that an editor has to beat, so they stop when every request holds, as editors do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.delta import Change, Delta, Dense, LowRank, weights_hash
from weightsmith.edit.closed_form import margin_for
from weightsmith.edit.image_corrections import ImageCorrections
from weightsmith.edit.preserved import Preserved, right_ones, texts_of
from weightsmith.edit.reading import Contexts, corrections_of, without_repeats
from weightsmith.edit.registry import editor
from weightsmith.edit.spread import finished
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.models.hooks import record_until
from weightsmith.request import Request
from weightsmith.site import Site

_POOL_TOKENS = 8192
"""Texts that are held back by KL: at most so many tokens, because the logits before are kept for all of them."""


@editor("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Adam on the weights, all or those of some blocks and the classifier, until each wanted answer leads by the margin.

    loss = mean over requests (NLL while below the margin, else 0) + `kl` · KL(before ‖ now) + `replay` · NLL(preserved), the
    last two on a batch of preserved samples a step: of images those that the model gets right with their labels, of texts
    their next tokens.

    Attributes:
        blocks: blocks that are learned, with the classifier; None learns every weight.
        lr: Adam's step; steps: at most so many.
        margin: logit margin by which the wanted answer should win; None takes `MARGIN`.
        kl, replay: weights of the terms that hold it back.
        preserved_batch: preserved samples a step (images, or windows of text).
        views, view: augmented views of each image that are learned beside it.
        seed: of the choice of preserved samples.
    """

    blocks: tuple[int, ...] | None = None
    lr: float = 1e-4
    steps: int = 100
    margin: float | None = None
    kl: float = 0.0
    replay: float = 0.0
    preserved_batch: int = 64
    views: int = 0
    view: str = "light"
    seed: int = 0

    name: ClassVar[str] = "finetune"

    def solve(
        self,
        model: Model,
        requests: Sequence[Request],
        preserve: Preserved,
        cache_dir: Path | None = None,
    ) -> Delta:
        """One delta over all weights that are learned.

        Raises:
            WeightsmithError: no requests, requests that contradict each other, or nothing preserved that a term needs.
            HeldOutError: `preserve` is sealed and a term needs it.
        """
        kept, repeated = without_repeats(requests)
        corrections = corrections_of(model, kept, Contexts(views=self.views, view=self.view, seed=self.seed), cache_dir)
        margin = margin_for(model, self.margin)
        if self.blocks is not None:
            model.check_layers(self.blocks)
        held = _Held.of(model, texts_of(preserve), self) if self.kl or self.replay else None
        learned_by, asked = model, corrections
        first = min(self.blocks or (0,))
        if first > 0 and isinstance(corrections, ImageCorrections) and model.family.residual:
            learned_by, asked, held = _behind(model, first, corrections, held)
        base = weights_hash(model)
        with _learning(model, self._names(model)) as weights:
            learned = self._learned(weights)
            optimizer = torch.optim.Adam(learned.parameters(), lr=self.lr)
            learn, hold = Fitting("requests are learned"), Fitting("preserved samples are held")
            steps = 0
            for _ in range(self.steps):
                short = torch.nonzero(asked.leads(learned_by) < margin).flatten()
                if not len(short):
                    break
                optimizer.zero_grad(set_to_none=True)
                slopes = _Slopes(learned.weights)
                # Those that hold pull no longer.
                slopes.add(
                    learn,
                    len(short),
                    lambda which: asked.loss(learned_by, short[which]).sum() / len(asked),  # noqa: B023
                )
                if held is not None:
                    drawn = held.drawn()
                    slopes.add(hold, len(drawn), lambda which: held.loss(learned_by, drawn, which, self))  # noqa: B023
                if not np.isfinite(slopes.loss):
                    raise WeightsmithError(
                        f"fine-tuning diverged in step {steps + 1}: give a smaller lr than {self.lr:g}"
                    )
                learned.step(slopes.by_name, optimizer)
                steps += 1
            changes = learned.changes()
        info = {"method": self.name, "options": asdict(self), "layers": [], "steps": steps, "repeated": repeated}
        return finished(model, corrections, Delta(changes, base), torch.zeros(len(corrections)), info)

    def _names(self, model: Model) -> list[str]:
        """The parameters that are learned."""
        names = [name for name, weight in model.module.named_parameters() if weight.is_floating_point()]
        if self.blocks is None:
            return names
        places = [f"{model.family.blocks}.{layer}." for layer in self.blocks] + [f"{model.family.classifier}."]
        return [name for name in names if name.startswith(tuple(places))]

    def _learned(self, weights: dict[str, Tensor]) -> _Learned:
        return _AllWeights(weights)


@editor("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(FineTune):
    """Fine-tuning of low-rank adapters W + (alpha/rank) · B A on the linear maps of the blocks and the classifier.

    After Hu et al., LoRA, 2022. A begins as Kaiming-uniform noise and B at zero, as in the reference implementation; nothing
    else is learned. The same terms hold it back as in `FineTune`.

    Attributes:
        rank, alpha: of the adapters.
    """

    lr: float = 1e-3
    rank: int = 8
    alpha: float = 16.0

    name: ClassVar[str] = "lora"

    def _names(self, model: Model) -> list[str]:
        places = (f"{model.family.blocks}.", f"{model.family.classifier}.")
        return [
            name
            for name in super()._names(model)
            if name.startswith(places) and name.endswith("weight") and model.module.get_parameter(name).ndim == 2
        ]

    def _learned(self, weights: dict[str, Tensor]) -> _Learned:
        return _Adapters(weights, self.rank, self.alpha / self.rank, self.seed)


_ENTERING_BYTES = 2**30
"""Activations entering the first learned block that are kept at most; beyond them every step runs the whole network."""


class _Behind(Model):
    """An image classifier that begins at a block: what it is given as images is what enters that block."""

    def __init__(self, model: Model, first: int) -> None:
        super().__init__(model.module, model.family, model.encode, model.class_names, model.name)
        self.first = first

    @property
    def preprocess(self) -> Any:
        return lambda hidden, device: hidden.to(device)

    def logits(self, inputs: Tensor) -> Tensor:
        return self.read_out(self.run_blocks(self.first, inputs))


@torch.no_grad()
def _behind(
    model: Model, first: int, corrections: ImageCorrections, held: _Held | None
) -> tuple[Model, ImageCorrections, _Held | None]:
    """The network from its first learned block on, and what enters it: blocks that stay as they are run once.

    All three are as they were given where that is more than `_ENTERING_BYTES`.
    """
    site = Site("resid.in", first)

    def entering(images: Tensor) -> Tensor:
        def read(part: Tensor) -> Tensor:
            return record_until(model, model.preprocess(part, model.device), [site])[site].cpu()

        return torch.cat(list(Fitting("images are read").each(read, ((part,) for part in torch.split(images, 256)))))

    count = corrections.images.shape[:2].numel() + (len(held.inputs) if held is not None else 0)
    if count * entering(corrections.images[0, :1]).nbytes > _ENTERING_BYTES:
        return model, corrections, held
    flat = entering(corrections.images.flatten(0, 1))
    asked = replace(corrections, read=flat.view(*corrections.images.shape[:2], *flat.shape[1:]))
    return _Behind(model, first), asked, None if held is None else replace(held, inputs=entering(held.inputs))


class _Slopes:
    """The gradient of a loss that is a sum over samples, in as many parts as memory needs.

    Attributes:
        loss: what it came to; by_name: its gradient by each weight.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.loss = 0.0
        self.by_name: dict[str, Tensor] = {}

    def add(self, fitting: Fitting, count: int, loss: Callable[[slice], Tensor]) -> None:
        """A term, from places among its `count` samples to what these add to it."""

        def part(which: slice) -> tuple[float, tuple[Tensor, ...]]:
            value = loss(which)
            return float(value.detach()), torch.autograd.grad(value, list(self.weights.values()))

        for value, slopes in fitting.parts(part, count):
            self.loss += value
            for name, slope in zip(self.weights, slopes, strict=True):
                if name in self.by_name:
                    self.by_name[name] = self.by_name[name] + slope
                else:
                    self.by_name[name] = slope


class _Learned(ABC):
    """What is learned: the weights whose gradients it needs, and how a step changes them."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.start = {name: weight.detach().clone() for name, weight in weights.items()}

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """What the optimizer steps."""

    @abstractmethod
    def step(self, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """One step, written into the weights, from the weights' gradients."""

    @abstractmethod
    def changes(self) -> dict[str, Change]:
        """Parameter name → how it has changed since the start."""


class _AllWeights(_Learned):
    def parameters(self) -> list[Tensor]:
        return list(self.weights.values())

    def step(self, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        optimizer.step()

    def changes(self) -> dict[str, Change]:
        return {name: Dense((weight.detach() - self.start[name]).cpu()) for name, weight in self.weights.items()}


class _Adapters(_Learned):
    """B A beside each weight. The gradient of the weight itself gives both: ∂A = s Bᵀ G and ∂B = s G Aᵀ."""

    def __init__(self, weights: dict[str, Tensor], rank: int, scale: float, seed: int) -> None:
        super().__init__(weights)
        generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, weight in weights.items():
            rows, columns = weight.shape
            bound = 1 / columns**0.5  # Kaiming-uniform with a = √5
            noise = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
            self.pairs[name] = (torch.zeros(rows, rank).to(weight), noise.to(weight))

    def parameters(self) -> list[Tensor]:
        return [tensor for pair in self.pairs.values() for tensor in pair]

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        for name, (b, a) in self.pairs.items():
            b.grad, a.grad = self.scale * gradients[name] @ a.mT, self.scale * b.mT @ gradients[name]
        optimizer.step()
        for name, (b, a) in self.pairs.items():
            self.weights[name].copy_(self.start[name] + self.scale * (b @ a))

    def changes(self) -> dict[str, Change]:
        return {name: LowRank((self.scale * b).cpu(), a.clone().cpu()) for name, (b, a) in self.pairs.items()}


@contextmanager
def _learning(model: Model, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """These weights with gradients asked for, and no others; all as before afterwards."""
    weights: dict[str, Tensor] = {name: model.module.get_parameter(name) for name in names}
    everything: dict[str, Tensor] = dict(model.module.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    asked = {name: weight.requires_grad for name, weight in everything.items()}
    try:
        for name, weight in everything.items():
            weight.requires_grad_(name in weights)
        yield weights
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
                weight.grad = None
        for name, weight in everything.items():
            weight.requires_grad_(asked[name])


@dataclass(frozen=True, eq=False)
class _Held:
    """Preserved samples, what the unedited model says of them, and what they should be: (n, …) each."""

    inputs: Tensor
    before: Tensor
    wanted: Tensor
    batch: int
    chooser: np.random.Generator

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, preserve: ImageSet | TextSet, options: FineTune) -> _Held:
        chooser = np.random.default_rng(options.seed)
        if isinstance(preserve, TextSet):
            count = max(1, min(len(preserve), _POOL_TOKENS // preserve.length))
            chosen = preserve.subset(chooser.permutation(len(preserve))[:count])
            windows = [ids for ids in chosen.batches(1) if ids.shape[1] == preserve.length]
            if not windows:
                raise WeightsmithError("the preserved text holds no whole window: give more of it")
            inputs = torch.cat(windows).to(model.device)
            wanted, parts = inputs[:, 1:], torch.split(inputs, 8)
        else:
            right = right_ones(model, preserve)
            inputs, wanted = right.pixels(), torch.from_numpy(right.labels).to(model.device)
            parts = torch.split(inputs, 256)
        before = Fitting("preserved samples are read").each(
            lambda some: _said(model, some), ((some,) for some in parts)
        )
        return cls(inputs, torch.cat(list(before)), wanted, options.preserved_batch, chooser)

    def drawn(self) -> Tensor:
        """The places of the next batch of preserved samples."""
        return torch.from_numpy(self.chooser.choice(len(self.inputs), min(self.batch, len(self.inputs)), replace=False))

    def loss(self, model: Model, drawn: Tensor, which: slice, options: FineTune) -> Tensor:
        """What some of a batch add to its terms, which are means over its samples."""
        chosen = drawn[which]
        now = _said(model, self.inputs[chosen]).flatten(0, -2)
        before, wanted = self.before[chosen].flatten(0, -2), self.wanted[chosen].flatten()
        held: Tensor = options.kl * F.kl_div(now, before, log_target=True, reduction="batchmean")
        if options.replay:
            held = held + options.replay * F.nll_loss(now, wanted)
        return held * (len(chosen) / len(drawn))


def _said(model: Model, inputs: Tensor) -> Tensor:
    """Log-probabilities: of windows of text (n, T) those of the next tokens (n, T − 1, vocabulary), of images (n, classes)."""
    if model.family.reads == "text":
        logits = model.token_logits(inputs)[:, :-1]
    else:
        logits = model.logits(model.preprocess(inputs, model.device))
    return logits.float().log_softmax(-1)
