"""Replay: earlier edits that are asked again together with new ones, so that they are not forgotten.

Two ways go by this name. Replaying *requests* puts some earlier edits into the new batch with what they miss now as
their residual: an edit that has slipped is made again, at the price of reading it again. Replaying *keys* puts every
earlier key into the solve with a residual of zero (`edit.metric.Guarded`): nothing is read again and nothing that has
slipped comes back, but the new batch is held from moving any of them. The second is AlphaEdit's.

An editor that descends (`edit.FTM`) replays others in each of its steps, from rows that it keeps of each request; a single
draw a batch leaves it to forget all that were not drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.request import ImageRequest, Request

Kind = Literal["none", "requests", "keys", "both"]
Strategy = Literal["random", "priority", "recent"]
Eviction = Literal["fifo", "lru"]


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What is replayed.

    Attributes:
        kind: "none", "requests", "keys", or "both"; None takes what the editor is best served with.
        rate: requests replayed a new one, of an editor that draws anew in each step in each; None takes the editor's.
        adaptive: as many more as the share of those replayed last that had slipped.
        buffer_size: requests that are remembered at most.
        strategy: which are replayed: at random, those of highest priority, or the latest.
        eviction: which are forgotten when the buffer is full: the oldest (fifo) or the longest not replayed (lru).
        weight: what a replayed request or key counts, a new one counting 1.
        seed: of the draws.

    Raises:
        WeightsmithError: a rate, size or weight out of range.
    """

    kind: Kind | None = None
    rate: float | None = None
    adaptive: bool = True
    buffer_size: int = 2000
    strategy: Strategy = "random"
    eviction: Eviction = "fifo"
    weight: float = 1.0
    seed: int = 0

    def or_else(self, kind: Kind, rate: float) -> ReplayOptions:
        """The same with these where nothing was said."""
        return replace(
            self,
            kind=self.kind if self.kind is not None else kind,
            rate=self.rate if self.rate is not None else rate,
        )

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate < 0:
            raise WeightsmithError(f"--replay-rate must be 0 or more, not {self.rate:g}: give 0.5 say")
        if self.buffer_size < 1:
            raise WeightsmithError(f"--replay-buffer-size must be at least 1, not {self.buffer_size}: give 2000 say")
        if not 0 < self.weight < float("inf"):
            raise WeightsmithError(f"--replay-weight must be a positive number, not {self.weight:g}: give 1 say")

    @property
    def requests(self) -> bool:
        """Whether requests are replayed."""
        return self.kind in ("requests", "both")

    @property
    def keys(self) -> bool:
        """Whether keys are replayed."""
        return self.kind in ("keys", "both")


@dataclass(frozen=True, eq=False)
class Memory:
    """A remembered request.

    Attributes:
        request: what was asked.
        time: number of the batch that it came with.
        importance: given by the user, 1 by default.
        slipped: how often it had slipped when it was replayed.
        accesses: how often it was replayed; last: number of the batch that it was replayed with, or came with.
    """

    request: Request
    time: int
    importance: float = 1.0
    slipped: int = 0
    accesses: int = 0
    last: int = 0

    @property
    def priority(self) -> float:
        """Importance, larger for what slips and smaller for what was replayed and held."""
        return self.importance * (1 + self.slipped) / (1 + self.accesses - self.slipped)


class ReplayBuffer:
    """The requests that are remembered, one a subject (of images, one an image).

    Time is the number of a batch, not of a clock, so that a stream that is solved again draws the same.
    """

    def __init__(self, options: ReplayOptions) -> None:
        self.options = options
        self._held: dict[str, Memory] = {}
        self._slipping = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def memories(self) -> list[Memory]:
        """What is remembered, the oldest first."""
        return list(self._held.values())

    def requests(self) -> list[Request]:
        """All requests that are remembered, the oldest first."""
        return [memory.request for memory in self._held.values()]

    def add(
        self,
        requests: Sequence[Request],
        batch: int,
        importance: Mapping[str, float] | None = None,
        failed: Collection[str] = (),
    ) -> None:
        """Remember requests; one of a subject that is known takes the place of what was known of it.

        Args:
            importance: name → importance, 1 for those that are not there.
            failed: names of those whose edit does not hold from the start: as if they had slipped once.
        """
        for request in requests:
            key, missed = subject_of(request), int(request.name in failed)
            self._held.pop(key, None)
            value = (importance or {}).get(request.name, 1.0)
            self._held[key] = Memory(request, batch, value, slipped=missed, accesses=missed, last=batch)
            while len(self._held) > self.options.buffer_size:
                self._held.pop(self._evicted())

    def forget(self, request: Request) -> None:
        """Remember a request no more."""
        self._held.pop(subject_of(request), None)

    def sample(self, new: Sequence[Request], batch: int) -> list[Request]:
        """Requests to replay beside new ones, none of a subject that is new."""
        there, count = self._among(new)
        if self.options.strategy == "recent":
            chosen = there[len(there) - count :]
        elif self.options.strategy == "priority":
            chosen = sorted(there, key=lambda key: -self._held[key].priority)[:count]  # stable: of equals the oldest
        else:
            generator = np.random.default_rng([self.options.seed, batch])
            chosen = [there[i] for i in sorted(generator.permutation(len(there))[:count])]
        return [self._held[key].request for key in chosen]

    def draw(self, new: Sequence[Request], batch: int, step: int) -> list[Request]:
        """The same for an editor that replays others in each of its steps.

        By priority they are drawn in proportion to it (Schaul et al., Prioritized Experience Replay, 2016): always the same
        few would let all others go.
        """
        there, count = self._among(new)
        if self.options.strategy == "recent" or not count:
            return [self._held[key].request for key in there[len(there) - count :]]
        shares = None
        if self.options.strategy == "priority":
            priorities = np.array([self._held[key].priority for key in there])
            shares = priorities / priorities.sum()
        generator = np.random.default_rng([self.options.seed, batch, step])
        chosen = generator.choice(len(there), count, replace=False, p=shares)
        return [self._held[there[i]].request for i in sorted(chosen)]

    def _among(self, new: Sequence[Request]) -> tuple[list[str], int]:
        """What can be replayed beside new requests, and how many should be."""
        taken = {subject_of(request) for request in new}
        there = [key for key in self._held if key not in taken]
        rate = (self.options.rate or 0.0) * (1 + (self._slipping if self.options.adaptive else 0.0))
        return there, min(len(there), ceil(rate * len(new)))

    def replayed(self, held: Mapping[str, bool], batch: int) -> None:
        """Note how requests that were replayed stood before: name → whether the edit still held."""
        if not held:
            return
        for key, memory in self._held.items():
            if memory.request.name in held:
                slipped = memory.slipped + (not held[memory.request.name])
                self._held[key] = replace(memory, accesses=memory.accesses + 1, slipped=slipped, last=batch)
        self._slipping = 1 - sum(held.values()) / len(held)

    def _evicted(self) -> str:
        if self.options.eviction == "lru":
            return min(self._held, key=lambda key: self._held[key].last)
        return next(iter(self._held))


def subject_of(request: Request) -> str:
    """What the buffer knows a request by."""
    if isinstance(request, ImageRequest):
        return f"{request.source}:{request.name}"
    return f"{request.subject}\n{request.prompt.strip()}"
