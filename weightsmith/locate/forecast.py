"""What a sweep would cost, without doing it: one lane of each form is run, and counted for all of its form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weightsmith.locate.cases import Cases, PromptCases, select
from weightsmith.locate.lanes import Batch
from weightsmith.locate.metrics import METRICS
from weightsmith.locate.plan import first_token, groups
from weightsmith.locate.sweep import _Run, lanes_for, sweep
from weightsmith.models import Model, Split
from weightsmith.site import Site

_PROMPTS = 3
"""Prompts that are counted; others are taken to be like them."""
_SECONDS = 1.0
"""How long a part of the sweep is timed, at least once."""


@dataclass(frozen=True)
class SweepCost:
    """What a sweep costs.

    Attributes:
        block_forwards: as `Sweep.info` counts them.
        naive: of full passes, one a site and noise sample.
        seconds: on this machine.
        memory: bytes for the runs that are kept, and for the lanes that run at a time.
    """

    block_forwards: float
    naive: float
    seconds: float
    memory: int


def sweep_cost(
    model: Model,
    cases: Cases,
    sites: Sequence[Site],
    count: int,
    *,
    sever: Sequence[str] = (),
    memory: int | None = None,
) -> SweepCost:
    """The cost of sweeping `count` cases of which these are examples.

    Block forwards of images are exact: lanes of one form cost the same whatever the image. Those of prompts, whose tokens
    differ, are those of the examples, scaled.

    Raises:
        WeightsmithError: as `sweep`, of bad sites.
    """
    run = _Run(model, cases, tuple(sites), METRICS, 0.0, tuple(sever), memory)
    run.check()
    examples = min(len(cases.names), _PROMPTS if isinstance(cases, PromptCases) else 1)
    counted = [_one(run, index) for index in range(examples)]
    work = sum(one[0] for one in counted) / examples * count
    lanes = sum(one[1] for one in counted) / examples * count
    seconds = work * _pace(model, cases, sites, sever, memory)
    kept = count * cases.samples * run._input_bytes(0)
    running = min(int(lanes) * counted[0][2], run._lane_budget())
    return SweepCost(work, model.n_layers * lanes, seconds, min(kept, run._budget()) + running)


def _one(run: _Run, index: int) -> tuple[float, float, int]:
    """(block forwards, full passes, bytes of a lane) of one case."""
    clean, corrupted = run.cases.embedded([index])
    samples = corrupted.shape[1]
    every = [target for each in run._targets(index) for target in each]
    kinds = {write.kind for target in every for write in target.writes if write.clean}
    held = {write.kind for target in every for write in target.writes if not write.clean}
    lanes = lanes_for(run.model, clean, corrupted[:, 0], kinds, held)
    work = float(run.model.n_layers * (1 + samples))
    nothing = torch.zeros(1, dtype=torch.int64, device=clean.device)
    causal = run.model.family.causal and Split.fits(run.model)
    for group in groups(target for target in every if not target.restores_all):
        alike = [[target] for target in group] if causal else [group]
        for some in alike:
            before = lanes.work
            first = first_token(some[0], 0, lanes.tokens) if causal else 0
            lanes.run(Batch(nothing, nothing, [some[0].writes], first))
            work += (lanes.work - before) * len(some) * samples
    return work, 1 + samples * (1 + len(every)), lanes.lane_bytes()


def _pace(model: Model, cases: Cases, sites: Sequence[Site], sever: Sequence[str], memory: int | None) -> float:
    """Seconds a block forward: a part of the sweep is done, more and more of it until that took a second."""
    some, inputs, warm = min(8, len(sites)), 1, False
    while True:
        chosen = [sites[i * len(sites) // some] for i in range(some)]
        part = select(cases, list(range(inputs)))
        started = time.perf_counter()
        done = sweep(model, part, chosen, metrics=METRICS, min_gap=0.0, sever=sever, memory=memory, title="timing")
        spent = time.perf_counter() - started
        whole = some == len(sites) and inputs == len(cases.names)
        if warm and (spent >= _SECONDS or whole):
            return spent / float(done.info["block_forwards"])
        if warm or whole:  # the first one loads what all need
            some, inputs = min(3 * some, len(sites)), min(3 * inputs, len(cases.names))
        warm = True
