"""A training that several processes share: each takes its part of every batch, and all take the same step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from weightsmith import ranks

if TYPE_CHECKING:
    from weightsmith.train.loop import Training

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What a step's forward pass gives.

    Attributes:
        loss: scalar, a mean over what was decided; hits: how many decisions are right; seen: of how many.
    """

    loss: Tensor
    hits: int
    seen: int


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes; all of it without others.

    What one process cannot do is told to all before they wait for one another.

    Attributes:
        rank, size: the part, of how many.
    """

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> slice:
        """The places of this part among `count` samples; empty where there are fewer samples than parts."""
        places = ranks.divided(count, self.size)[self.rank]
        return slice(places.start, places.stop)

    def tried(self, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """(what it came to, what it raised); alone it raises."""
        if self.size == 1:
            return work(), None
        try:
            return work(), None
        except Exception as error:
            return None, error

    def totals(self, batch: Batch | None, failed: Exception | None) -> tuple[float, int, int]:
        """(loss times decisions, right ones, decisions) of all parts together; raises what any part raised."""
        own = (0.0, 0, 0)
        if batch is not None:
            own = (float(batch.loss.detach()) * batch.seen, batch.hits, batch.seen)
        if self.size == 1:
            return own
        values = torch.tensor([*own, float(failed is not None)], dtype=torch.float64)
        ranks.summed(values)
        _all_well(failed, float(values[3]))
        loss, hits, seen, _ = values.tolist()
        return loss, int(hits), int(seen)

    def sum_gradients(self, module: nn.Module, failed: Exception | None) -> None:
        """Put the sum of all parts' gradients into every part; a weight that has one in none keeps none."""
        if self.size == 1:
            return
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
        marks = [float(failed is not None), *(float(weight.grad is not None) for weight in weights)]
        pieces = [torch.tensor(marks, dtype=dtype, device=weights[0].device)]
        for weight in weights:
            there = weight.grad if weight.grad is not None and failed is None else torch.zeros_like(weight)
            pieces.append(there.to(dtype).flatten())
        flat = torch.cat(pieces)
        ranks.summed(flat)
        _all_well(failed, float(flat[0]))
        totals = torch.split(flat[len(marks) :], [weight.numel() for weight in weights])
        for weight, has, summed in zip(weights, flat[1 : len(marks)].tolist(), totals, strict=True):
            weight.grad = summed.view_as(weight).to(weight.dtype) if has else None


def _all_well(failed: Exception | None, failures: float) -> None:
    if failed is not None:
        raise failed
    if failures:
        raise ranks.ElsewhereError("the training ended in another process of this job: see what that one says")


@contextmanager
def replicas(training: Training) -> Iterator[None]:
    """Inside, every other process of the job has a replica of the training; nothing happens where there is none."""
    if ranks.world() == 1:
        yield
        return
    size = ranks.world()
    found = ranks.everywhere(_take, [(training, Share(rank, size)) for rank in range(size)], mine=os.getpid)
    if len(set(found)) == size:
        training.share = Share(0, size)
    try:
        yield
    finally:
        if training.share.size > 1 and ranks.world() > 1:
            training.share = Share()
            ranks.everywhere(_leave, [()] * size, mine=lambda: None)


def steps_of_replica(epoch: int, first: int) -> None:
    """The steps of an epoch from the `first` on, with this process's replica."""
    _held[0].run_steps(epoch, first)


_held: list[Training] = []
"""The replica of this process."""


def _take(training: Training, share: Share) -> int:
    if not ranks.helping():  # it could not be sent, and this is the training itself
        return os.getpid()
    training.share = share
    _held[:] = [training]
    torch.manual_seed(training.options.seed + share.rank)  # whatever is dropped is not the same in each part
    return os.getpid()


def _leave() -> None:
    _held.clear()
