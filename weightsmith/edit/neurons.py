"""One neuron an error: a detector that opens for one image alone, and the value that corrects it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from weightsmith.edit.cls_tail import State, Tail
from weightsmith.edit.targets import margins
from weightsmith.errors import WeightsmithError

_TRIES = 5
"""Folding and the values of others can unsettle a request that held; it then joins, at most so many times."""


class MemoryOptions(Protocol):
    """See `Patcher`."""

    @property
    def memory_epsilon(self) -> float: ...
    @property
    def others(self) -> float: ...
    @property
    def quiet(self) -> float: ...
    @property
    def loud(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def fold(self) -> float: ...
    @property
    def open_for_views(self) -> bool: ...


@torch.no_grad()
def remember(
    tail: Tail,
    asked: State,
    targets: Tensor,
    held: State,
    options: MemoryOptions,
    log: dict[str, Any],
    holding: Tensor,
) -> None:
    """Give every request that is still wrong a neuron, in float64; written into the tail.

    Args:
        asked: (views · E) rows, the E images themselves first, then each kind of view of all of them.
        targets: (E,) wanted classes.
        held: preserved images, on which every detector stays shut.
        holding: (E,) which requests held before anything was changed: of a stream, the earlier ones. What a neuron does for
            one of them counts as use, or the memory of an earlier error would be the first to be taken.

    Raises:
        WeightsmithError: more requests than the MLP has neurons.
    """
    tail.double()
    try:
        _Memory(tail, asked.double(), targets, held.double(), options, holding).write(log)
    finally:
        tail.float()


class _Memory:
    def __init__(
        self, tail: Tail, asked: State, targets: Tensor, held: State, options: MemoryOptions, holding: Tensor
    ) -> None:
        self.tail, self.targets, self.options = tail, targets, options
        count = len(targets)
        middle = tail.middle(asked)
        self.views = tail.norm(middle).unflatten(0, (-1, count))  # (views, E, width)
        self.own, self.entering = middle[:count], self.views[0]
        self.held = tail.norm(tail.middle(held))
        self.up, self.down = tail.linear(tail.up_name), tail.linear(tail.down_name)
        keys = tail.keys(self.held)
        self.mean_key = keys.mean(0)
        self.covariance = (keys - self.mean_key).mT @ (keys - self.mean_key) / len(keys)
        weighs = self.down.weight.square().sum(0)
        use = self.covariance.diagonal() * weighs
        if bool(holding.any()):
            use = use + tail.keys(self.entering[holding]).square().amax(0) * weighs
        self.least_used = use.argsort()
        self.mean = self.held.mean(0)
        centred = self.held - self.mean
        spread = centred.mT @ centred / len(centred)
        floor = options.memory_epsilon * spread.diagonal().mean()
        self.spread = spread + floor * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)

    def write(self, log: dict[str, Any]) -> None:
        margin = self.options.margin
        todo = torch.nonzero(self._leads() < margin / 2).flatten().tolist()
        start = {name: parameter.clone() for name, parameter in self.tail.mlp.named_parameters()}
        for _ in range(_TRIES):
            if not todo:
                return
            if len(todo) > len(self.least_used) // 2:
                raise WeightsmithError(
                    f"{len(todo)} errors need a neuron each and the last MLP has {len(self.least_used)}, of which at most "
                    "half are taken: give fewer corrections, or a larger budget for the shift"
                )
            for name, parameter in self.tail.mlp.named_parameters():
                parameter.copy_(start[name])
            taken = self.least_used[: len(todo)]
            self._fold(taken)
            for neuron, request in zip(taken.tolist(), todo, strict=True):
                self._detect(neuron, request)
            self._fill(taken, todo)
            log["memories"] = len(todo)
            unsettled = torch.nonzero(self._leads() <= 0).flatten().tolist()
            joined = sorted({*todo, *unsettled})
            if joined == todo:
                return
            todo = joined

    def _leads(self) -> Tensor:
        return margins(self.tail.read_out(self.own + self.tail.mlp(self.entering)), self.targets)

    def _fold(self, taken: Tensor) -> None:
        """What the taken neurons add is carried by the others, as far as they tell: ridge regression on preserved keys."""
        rest = torch.ones(len(self.least_used), dtype=torch.bool, device=taken.device)
        rest[taken] = False
        among = self.covariance[rest][:, rest]
        ridge = self.options.fold * among.diagonal().mean()
        eye = torch.eye(len(among), dtype=among.dtype, device=among.device)
        carried = torch.linalg.solve(among + ridge * eye, self.covariance[rest][:, taken]).mT  # (taken, rest)
        values = self.down.weight[:, taken].clone()
        self.down.weight[:, rest] += values @ carried
        self.down.weight[:, taken] = 0
        self.down.bias.data += values @ (self.mean_key[taken] - carried @ self.mean_key[rest])

    def _detect(self, neuron: int, request: int) -> None:
        """Its direction Σ⁻¹(x − μ), and a threshold above the loudest image that must not open it."""
        options = self.options
        others = torch.ones(len(self.targets), dtype=torch.bool, device=self.targets.device)
        others[request] = False
        foreign = self.views[:, others].flatten(0, 1)
        spread = self.spread
        if len(foreign):
            apart = foreign - self.mean
            spread = (1 - options.others) * spread + options.others * (apart.mT @ apart / len(apart))
        mine = self.views[:, request]
        centre = (mine.mean(0) if options.open_for_views else mine[0]) - self.mean
        w = torch.linalg.solve(spread, centre)
        scores = mine @ w
        loudest = torch.cat([self.held @ w, foreign @ w]).max()
        opens = torch.minimum(scores[0], torch.maximum(scores.min(), (loudest + scores[0]) / 2))
        if scores[0] <= loudest:  # it cannot be told from an image that must not open it: a narrow step
            loudest, opens = scores[0] - 0.05 * w.norm(), scores[0]
        slope = (options.loud + options.quiet) / (opens - loudest)
        self.up.weight[neuron] = slope * w
        self.up.bias[neuron] = -options.quiet - slope * loudest

    def _fill(self, taken: Tensor, todo: list[int]) -> None:
        """The values: the least change of the residual stream that reaches the margin, solved for all at once."""
        margin = self.options.margin
        for _ in range(20):
            if bool((self._leads()[todo] >= margin / 2).all()):
                return
            hidden = self.own + self.tail.mlp(self.entering)
            step = self._to_margin(hidden)[todo]
            openings = self.tail.keys(self.entering)[todo][:, taken]
            gram = openings.mT @ openings
            ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(todo), dtype=gram.dtype, device=gram.device)
            self.down.weight[:, taken] += torch.linalg.solve(gram + ridge, openings.mT @ step).mT

    def _to_margin(self, hidden: Tensor) -> Tensor:
        """(E, width) a Newton walk along the margin's gradient until the wanted class leads by it."""
        step = torch.zeros_like(hidden)
        for _ in range(60):
            with torch.enable_grad():
                here = (hidden + step).requires_grad_()
                leads = margins(self.tail.read_out(here), self.targets)
                (slope,) = torch.autograd.grad(leads.sum(), here)
            short = (self.options.margin - leads.detach()).clamp(min=0)
            if float(short.max()) <= 1e-6:
                break
            step += 0.7 * (short / slope.square().sum(1).clamp(min=1e-9))[:, None] * slope
        return step
