"""A training step that memory does not hold at once: the same step, its samples in parts whose gradients are added up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightsmith.batches import REMEDY, tried
from weightsmith.errors import WeightsmithError
from weightsmith.train.sharing import Batch, Share

if TYPE_CHECKING:
    from weightsmith.train.loop import Training

_log = logging.getLogger(__name__)


class Halving:
    """The passes of a training's steps: one for all samples of a step, or several where memory asks for it.

    The update is that of the whole batch but for rounding: losses are means over decisions, and each part's gradient counts
    by how many it decided. What dropout drops is another draw.

    Attributes:
        parts: into how many this process's samples of a step are cut; it only grows.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.parts = 1
        self._loss: Tensor | None = None  # with its graph, which nobody else holds
        self._seen = 0
        self._step = (0, 0)
        self._random: list[Tensor] = []

    def forward(self, epoch: int, step: int) -> Batch | None:
        """What a step comes to; where it is in parts its gradients, times decisions, are added up by then."""
        self._step, self._random = (epoch, step), _random_state(self.training.device)
        self.training.optimizer.zero_grad(set_to_none=True)
        if self.parts == 1:
            done = tried(self._whole)
            if done is not None:
                return done[0]
            self._cut()
        return self._in_parts()

    def backward(self, seen: int) -> None:
        """Leave the gradient of the mean over `seen` decisions, those of all processes, in the weights."""
        if self._loss is not None and tried(self._whole_backward, seen) is None:
            self._cut()
            self._in_parts()
        if self.parts > 1:
            for weight in self.training.model.module.parameters():
                if weight.grad is not None:
                    weight.grad.mul_(self.training.options.batch_size / seen)

    def _whole(self) -> Batch | None:
        batch = self.training.forward(*self._step)
        if batch is None:
            return None
        self._loss, self._seen = batch.loss, batch.seen
        return Batch(batch.loss.detach(), batch.hits, batch.seen)

    def _whole_backward(self, seen: int) -> None:
        loss, self._loss = self._loss, None
        assert loss is not None
        if self._seen != seen:  # where each process has a share, the mean over all of them is what is followed
            loss = loss * (self._seen / seen)
        self.training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def _in_parts(self) -> Batch | None:
        while True:
            found = self._all_parts()
            if found is not None:
                break
            self._cut()
        seen = sum(part.seen for part in found)
        if not seen:
            return None
        loss = torch.stack([part.loss * part.seen for part in found]).sum() / seen
        return Batch(loss, sum(part.hits for part in found), seen)

    def _all_parts(self) -> list[Batch] | None:
        """What each part came to; None where memory ran out."""
        self.training.optimizer.zero_grad(set_to_none=True)
        _restore(self._random, self.training.device)
        found: list[Batch] = []
        for part in range(self.parts):
            done = tried(self._part, part)
            if done is None:
                return None
            found += [done[0]] if done[0] is not None else []
        return found

    def _part(self, part: int) -> Batch | None:
        training, share = self.training, self.training.share
        training.share = Share(share.rank * self.parts + part, share.size * self.parts)
        try:
            batch = training.forward(*self._step)
        finally:
            training.share = share
        if batch is None:
            return None
        weight = batch.seen / training.options.batch_size  # so that numbers stay near those of a mean
        training.scaler.scale(batch.loss * weight).backward()  # type: ignore[no-untyped-call]
        return Batch(batch.loss.detach(), batch.hits, batch.seen)

    def _cut(self) -> None:
        own = -(-self.training.options.batch_size // self.training.share.size)
        if self.parts >= own:
            raise WeightsmithError(f"memory ran out while training, one sample at a time: {REMEDY}")
        if self.parts == 1:
            _log.warning(
                "memory ran out in a training step of %d samples: they pass in parts from here on, and gradients are added up",
                own,
            )
        self.parts *= 2


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
