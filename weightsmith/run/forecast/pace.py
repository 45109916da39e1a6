"""How fast this machine runs a network: a short measurement, from which the time of a plan is estimated."""

from __future__ import annotations

import copy
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightsmith import mapped
from weightsmith.measure.cost import still_image
from weightsmith.models import Model
from weightsmith.models.paged import at_a_time, bytes_of, weights_of
from weightsmith.run.forecast.live import most_bytes

_PATIENCE = 1.0
"""Seconds that each measurement may take, one round at least."""
_LEAST, _MOST = 3, 20

HOW = (
    "Times are from passes of this network (with random weights where it is still to be trained) that were timed just now on "
    "this machine; a machine that is busy later is slower. docs/commands.md says how far estimates were from real runs."
)


@dataclass(frozen=True)
class Pace:
    """What passes of a network cost here.

    Attributes:
        blocks: of the network; a pass of one input is so many block forwards.
        call: seconds that a forward pass takes whatever it is given; image: seconds of each input more.
        trained_call, trained: the same of a forward and a backward pass.
        update: seconds of clipping the gradients and of the optimizer's step.
        saved: seconds of writing weights and optimizer into a checkpoint.
        weights: bytes of the parameters.
        kept: bytes that a forward and a backward pass have at a time, an input; alive: a forward pass alone.
        keys: how wide the keys of an MLP are; 0 where there are none.
    """

    blocks: int
    call: float
    image: float
    trained_call: float
    trained: float
    update: float
    saved: float
    weights: int
    kept: int
    alive: int
    keys: int

    def forwards(self, inputs: float) -> float:
        """Block forwards of passes of so many inputs."""
        return self.blocks * inputs

    def passes(self, inputs: float, batch: int = 256) -> float:
        """Seconds of forward passes, so many inputs at a time."""
        return math.ceil(inputs / batch) * self.call + inputs * self.image

    def descents(self, inputs: float, batch: int) -> float:
        """Seconds of forward and backward passes."""
        return math.ceil(inputs / batch) * self.trained_call + inputs * self.trained

    def steps(self, steps: float, batch: int) -> float:
        """Seconds of training steps."""
        return steps * (self.trained_call + batch * self.trained + self.update)

    def training_memory(self, batch: int) -> int:
        """Bytes beside the weights: gradients, both moments of Adam, two copies of the best weights, activations.

        There are two when an epoch is better than the best one before, whose copy goes when the new one is there.
        """
        return 5 * self.weights + batch * self.kept


def pace_of(model: Model, batch: int = 64, tokens: int = 32, *, trains: bool = True) -> Pace:
    """Time passes of a network.

    Args:
        batch: inputs of a pass as the command has them; fewer are timed where they would take too long.
        tokens: of a text.
        trains: time a training step as well; without it what needs gradients is taken to cost three forward passes.

    Of a network whose weights stay in their file one block is timed, and reading all of them from the disk, where memory has no
    room for them.
    """
    if mapped.stays(model.module):
        return _pace_in_file(model, tokens)

    def forward(count: int) -> Callable[[], object]:
        given = _given(model, count, tokens)
        return lambda: model.logits(given)

    with torch.no_grad():
        call, image = _line(forward, model, batch)
        alive = _more(forward)
    weights, keys = at_a_time(model), _keys(model)
    if not trains:

        def back(count: int) -> Callable[[], object]:
            with torch.no_grad():
                hidden = model.embed(_given(model, count, tokens))
            return _descent(model, 0, hidden)

        with torch.enable_grad():
            kept = _more(back)
        return Pace(model.n_layers, call, image, 3 * call, 3 * image, 0.0, 0.0, weights, kept, alive, keys)
    module: Any = copy.deepcopy(model.module).train()

    def both(count: int) -> Callable[[], object]:
        given = _given(model, count, tokens)

        def descend() -> None:
            module.zero_grad(set_to_none=True)
            module(given).logits.float().square().mean().backward()

        return descend

    with torch.enable_grad():
        kept = _more(both)
        trained_call, trained = _line(both, model, batch)
        update, saved = _updating(module, model)
    return Pace(model.n_layers, call, image, trained_call, trained, update, saved, weights, kept, alive, keys)


def _pace_in_file(model: Model, tokens: int) -> Pace:
    """The pace of a network larger than memory: of its last block, as often as there are blocks, and of what follows it."""
    blocks, last = model.n_layers, model.n_layers - 1
    with torch.no_grad():
        one, two = (model.embed(_given(model, count, tokens)) for count in (1, 2))

    def forward(layer: int, hidden: Tensor) -> Callable[[], object]:
        return lambda: model.run_from(layer, hidden)

    def descent(layer: int, hidden: Tensor) -> Callable[[], object]:
        return _descent(model, layer, hidden)

    def seconds(hidden: Tensor) -> float:
        behind = _timed(forward(blocks, hidden), model)
        return behind + blocks * max(_timed(forward(last, hidden), model) - behind, 0.0)

    def of_more(work: Callable[[int, Tensor], Callable[[], object]], layer: int) -> int:
        return max(most_bytes(work(layer, two)) - most_bytes(work(layer, one)), 0)

    with torch.no_grad():
        whole, more, alive = seconds(one), seconds(two), of_more(forward, last)
    with torch.enable_grad():
        tail = of_more(descent, blocks)
        kept = tail + blocks * max(of_more(descent, last) - tail, 0)
    image = max(more - whole, 0.0)
    call = max(whole - image, 0.0) + _reading(model)
    return Pace(blocks, call, image, 3 * call, 3 * image, 0.0, 0.0, at_a_time(model), kept, alive, _keys(model))


def _descent(model: Model, layer: int, hidden: Tensor) -> Callable[[], object]:
    """A forward pass from a block on and the backward pass to what entered it, which editors and screens make."""
    start = hidden.detach().requires_grad_()
    return lambda: torch.autograd.grad(model.run_from(layer, start).float().square().mean(), start)


def _reading(model: Model) -> float:
    """Seconds of reading all weights from their file, as each pass does where memory has no room for them; else 0."""
    free, size, block = mapped.free_memory(), bytes_of(model.module), model.blocks[-1]
    if free is not None and size < free:
        return 0.0
    weights = weights_of(block)
    mapped.push_out(weights)
    mapped.ask_for(weights)
    started = time.perf_counter()
    for weight in weights:
        weight.detach().view(-1)[:: mapped.PAGE // weight.element_size()].float().sum()
    return (time.perf_counter() - started) * size / bytes_of(block)


def _given(model: Model, count: int, tokens: int) -> Tensor:
    """So many inputs to time."""
    if model.family.reads == "text":
        return torch.zeros(count, tokens, dtype=torch.int64, device=model.device)
    return still_image(model, count)


def _keys(model: Model) -> int:
    if "mlp.value" not in model.family.linear or not model.has("mlp.value", model.n_layers - 1):
        return 0
    name, transposed, _ = model.linear("mlp.value", model.n_layers - 1)
    return int(model.module.get_parameter(name).shape[0 if transposed else 1])


def _line(work: Callable[[int], Callable[[], object]], model: Model, batch: int) -> tuple[float, float]:
    """Seconds of a pass as (whatever it is given, for each input): from passes of one input and of several."""
    one = _timed(work(1), model)
    count = max(1, min(batch, int(_PATIENCE / 3 / max(one, 1e-9))))
    if count == 1:
        return 0.0, one
    each = max((_timed(work(count), model) - one) / (count - 1), 0.0)
    return max(one - each, 0.0), each


def _more(work: Callable[[int], Callable[[], object]]) -> int:
    """Bytes of memory for each input more."""
    work(1)()  # gradients that are kept, and what is made once, are there then
    return max(most_bytes(work(3)) - most_bytes(work(1)), 0) // 2


def _updating(module: Any, model: Model) -> tuple[float, float]:
    """Seconds of (clipping gradients that are there and a step of the optimizer, writing a checkpoint into memory)."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    def save() -> None:
        weights = module.state_dict()
        torch.save(
            {"model": weights, "best": {n: t.clone() for n, t in weights.items()}, "optimizer": optimizer.state_dict()},
            io.BytesIO(),
        )

    return _timed(step, model), _timed(save, model, 3)


def _timed(work: Callable[[], object], model: Model, most: int = _MOST) -> float:
    """Seconds of one go, the median of a few, after one that does not count."""
    work()
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < most and (len(found) < min(_LEAST, most) or time.perf_counter() - started < _PATIENCE):
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        began = time.perf_counter()
        work()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        found.append(time.perf_counter() - began)
        if found[0] > _PATIENCE:
            break
    return statistics.median(found)
