"""How long forward passes take: models in turn, round by round, so that a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weightsmith.measure.cost import still_image
from weightsmith.measure.intervals import Interval, median
from weightsmith.models import Model
from weightsmith.progress import progress

WARM_UP = 2
"""Passes of each model and batch size that are not counted: they fill caches and choose kernels."""
LEAST_ROUNDS = 6
"""With fewer values a median has no interval."""


@dataclass(frozen=True, eq=False)
class Latency:
    """Times of one model at one batch size.

    Attributes:
        batch_size: images a pass.
        milliseconds: (rounds,) of a pass, in the order of the rounds.
    """

    batch_size: int
    milliseconds: np.ndarray

    @property
    def median(self) -> Interval:
        """Milliseconds a batch, with the distribution-free interval of a median."""
        return median(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, milliseconds: what single passes spread over."""
        low, high = np.quantile(self.milliseconds, [0.25, 0.75])
        return float(low), float(high)

    @property
    def throughput(self) -> float:
        """Images a second at the median."""
        return 1000 * self.batch_size / self.median.value

    def against(self, other: Latency) -> Interval:
        """Median over rounds of this time divided by that of another model in the same round."""
        return median(self.milliseconds / other.milliseconds)


def latencies(
    models: Mapping[str, Model],
    batch_sizes: Sequence[int],
    rounds: int = 30,
    most_seconds: float = 60.0,
    seed: int = 0,
) -> dict[str, dict[int, Latency]]:
    """Time the forward pass of preprocessed images: name → batch size → times.

    In each round every model runs once, in an order drawn anew, so that neither a drift of the machine nor what ran
    before favours one. The same model under two names is an A/A control: their ratio shows what noise alone gives.

    Args:
        rounds: of each batch size; fewer, but six at least, where they would take longer than `most_seconds`.
    """
    found: dict[str, dict[int, Latency]] = {name: {} for name in models}
    with progress("timing", len(batch_sizes) * rounds) as advance:
        for size in batch_sizes:
            passes = {name: _pass(model, still_image(model, size)) for name, model in models.items()}
            device = next(iter(models.values())).device
            for name, row in interleaved(passes, device, rounds, most_seconds, [seed, size], advance).items():
                found[name][size] = Latency(size, row)
    return found


@torch.no_grad()
def interleaved(
    passes: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 30,
    most_seconds: float = 60.0,
    seed: int | Sequence[int] = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Milliseconds of each pass, (rounds,): every one runs once in each round, in an order drawn anew.

    Args:
        rounds, most_seconds: as for `latencies`.
        advance: told how many rounds are done with.
    """
    random = np.random.default_rng(seed)
    names = list(passes)
    for name in names:
        for _ in range(WARM_UP):
            _seconds(passes[name], device)
    started, taken = time.monotonic(), []
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() - started > most_seconds:
            advance(rounds - number)
            break
        row = np.empty(len(names))
        for place in random.permutation(len(names)):
            row[place] = _seconds(passes[names[place]], device)
        taken.append(row)
        advance(1)
    table = 1000 * np.stack(taken)
    return {name: table[:, place] for place, name in enumerate(names)}


def _pass(model: Model, inputs: torch.Tensor) -> Callable[[], object]:
    return lambda: model.logits(inputs)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one pass, what is queued on an accelerator included."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
