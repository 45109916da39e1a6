"""How fast this machine runs a network: a short measurement, from which the time of a plan is estimated."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightsmith.measure.cost import still_image
from weightsmith.models import Model

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
        image: seconds of a forward pass, an input, in batches.
        trained: seconds of a forward and a backward pass, an input, in batches.
        update: seconds of the optimizer's step.
        weights: bytes of the parameters.
        kept: bytes that a forward pass keeps for the backward one, an input.
        alive: bytes that a forward pass without a backward one needs, an input; that of one block and its input.
    """

    blocks: int
    image: float
    trained: float
    update: float
    weights: int
    kept: int
    alive: int

    def forwards(self, inputs: float) -> float:
        """Block forwards of passes of so many inputs."""
        return self.blocks * inputs

    def passes(self, inputs: float) -> float:
        """Seconds of forward passes."""
        return self.image * inputs

    def steps(self, steps: float, batch: int) -> float:
        """Seconds of training steps."""
        return steps * (batch * self.trained + self.update)

    def training_memory(self, batch: int) -> int:
        """Bytes beside the weights: gradients, both moments of Adam, a copy of the best weights, activations."""
        return 4 * self.weights + batch * self.kept


def pace_of(model: Model, batch: int = 64, tokens: int = 32, *, trains: bool = True) -> Pace:
    """Time passes of a network.

    Args:
        batch: inputs of a pass as the command has them; fewer are timed where they would take too long.
        tokens: of a text.
        trains: time a training step as well; without it what needs gradients is taken to cost three forward passes.
    """

    def inputs(count: int) -> Tensor:
        if model.family.reads == "text":
            return torch.zeros(count, tokens, dtype=torch.int64, device=model.device)
        return still_image(model, count)

    one = inputs(1)
    with torch.no_grad():
        single = _timed(lambda: model.logits(one), model, 2)
        count = max(1, min(batch, int(_PATIENCE / 3 / max(single, 1e-9))))
        several = inputs(count)
        image = _timed(lambda: model.logits(several), model) / count
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
    kept, largest = _kept(model, one)
    trained, update = 3 * image, 0.0
    if trains:
        # A step takes three to four times a pass.
        count = max(1, min(batch, int(_PATIENCE / (4 * max(image, 1e-9) * _LEAST))))
        trained, update = _training(model, inputs(count), count)
    return Pace(model.n_layers, image, trained, update, weights, kept, largest)


def _training(model: Model, several: Tensor, count: int) -> tuple[float, float]:
    """(seconds of a forward and a backward pass, an input; seconds of the optimizer's step), on a copy of the network."""
    module: Any = copy.deepcopy(model.module).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)

    def both() -> None:
        module.zero_grad(set_to_none=True)
        module(several).logits.float().square().mean().backward()

    step = _timed(both, model) / count
    return step, _timed(lambda: optimizer.step(), model)


def _kept(model: Model, one: Tensor) -> tuple[int, int]:
    """(bytes that the pass of one input keeps for the backward pass; those of the blocks' largest share, twice)."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            sizes[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model.logits(one)
        total = sum(sizes.values())
        del held
    return total, 2 * total // max(model.n_layers, 1)


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
