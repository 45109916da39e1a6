"""Reading keys into running sums, batch by batch: in this process, or shared among those of a job."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.measure.convergence import Convergence
from weightsmith.measure.sums import RunningSum
from weightsmith.models import Model
from weightsmith.models.hooks import record_until
from weightsmith.site import Site

_FIRST_BATCHES = 4
"""Of each process in the first round, whose time says how long the next may be."""

_TITLE = "key statistics are taken"
_ROUND_SECONDS = 15.0
"""Until the processes' sums are put together, about: what a kill may cost."""


def read_alone(
    model: Model,
    samples: ImageSet | TextSet,
    sums: list[RunningSum],
    done: int,
    size: int,
    until: Convergence | None,  # noqa: ARG001
) -> Iterator[int]:
    """Read from the `done`-th sample on; each time how many were read and are in the sums that had come so far.

    Sums whose samples were put aside further on join on the way; the caller may take finished ones out of the list.
    """
    fitting = Fitting(_TITLE)
    for inputs in _inputs(model, samples, done, size):
        active = [running for running in sums if running.samples == done]
        if active:
            _add(model, inputs, active, fitting)
        done += len(inputs)
        yield len(inputs)


def read_shared(
    model: Model, samples: ImageSet | TextSet, sums: list[RunningSum], done: int, size: int, until: Convergence | None
) -> Iterator[int]:
    """`read_alone` with the batches of a round divided among the processes, each of which reads its own alone.

    A round ends where a rule would look next, so that it looks at the same sums as in one process.
    """
    batches = _FIRST_BATCHES * ranks.world()
    while done < len(samples):
        active = [running for running in sums if running.samples == done]
        ends = [running.samples for running in sums if running.samples > done]
        if active:
            ends += [done + size * min(_batches_to_look(each, size, until, batches) for each in active)]
        end = min([len(samples), *ends])
        if active:
            started = time.monotonic()
            shares = [
                (model, [running.site for running in active], samples.subset(range(first, last)).alone(), size)
                for first, last in _cut(done, end, size)
            ]
            for found in ranks.everywhere(_sums_of, shares):
                for running, other in zip(active, found, strict=True):
                    running.join(other)
            if time.monotonic() - started < _ROUND_SECONDS / 2:
                batches *= 2
        yield end - done
        done = end


def _batches_to_look(running: RunningSum, size: int, until: Convergence | None, most: int) -> int:
    """After how many batches a rule looks at a sum, at `most`; 1 where that cannot be known yet."""
    if until is None:
        return most
    if not running.samples:
        return 1
    keys = until.due(running.last, running.width) - running.count
    return min(most, max(1, math.ceil(keys * running.samples / (running.count * size))))


def _cut(done: int, end: int, size: int) -> list[tuple[int, int]]:
    """Which samples each process reads: whole batches, in order."""
    shares = ranks.divided(math.ceil((end - done) / size))
    return [(min(done + size * each.start, end), min(done + size * each.stop, end)) for each in shares]


@torch.no_grad()
def _sums_of(model: Model, sites: Sequence[Site], samples: ImageSet | TextSet, size: int) -> list[RunningSum]:
    """One process's share: the sums of its samples."""
    sums, fitting = [RunningSum(site) for site in sites], Fitting(_TITLE)
    for inputs in _inputs(model, samples, 0, size) if len(samples) else ():
        _add(model, inputs, sums, fitting)
    return sums


def _add(model: Model, inputs: Tensor, sums: Sequence[RunningSum], fitting: Fitting) -> None:
    """Read the keys of a batch into the sums, in as many passes as memory needs."""
    sites = [running.site for running in sums]
    for seen in fitting.parts(lambda which: record_until(model, inputs[which], sites), len(inputs)):
        for running in sums:
            keys = seen.pop(running.site)
            running.add(keys, len(keys))


def _inputs(model: Model, samples: ImageSet | TextSet, done: int, size: int) -> Iterator[Tensor]:
    """What the model reads, batch by batch, from the `done`-th sample on."""
    rest = samples.subset(range(done, len(samples)))
    if isinstance(rest, TextSet):
        for ids in rest.batches(size):
            yield ids.to(model.device)
    else:
        dtype = next(model.module.parameters()).dtype
        for pixels, _ in rest.batches(size):
            yield model.preprocess(pixels, model.device).to(dtype)
