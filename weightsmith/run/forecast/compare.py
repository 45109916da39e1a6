"""The plans of `weightsmith compare` and `ablate`: cells, each a solve and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from weightsmith.files import user_path
from weightsmith.models import Model
from weightsmith.report.comparison import MEASURES as COMPARED
from weightsmith.request import TextRequest
from weightsmith.run.ablate.command import KIN as ABLATE_KIN
from weightsmith.run.ablate.command import WAYS
from weightsmith.run.ablate.command import check_options as check_ablation
from weightsmith.run.cells import file_of
from weightsmith.run.compare.benching import METHODS, earlier_of, parts_of, sweep_of
from weightsmith.run.compare.command import KIN, check_options
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.correct import solving
from weightsmith.run.forecast.knowledge import answering, aside_of, language, moments_of, preserved_passes
from weightsmith.run.forecast.locate import embedded
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, loading, passes, scoring
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.language import Kept, facts_of, of_name
from weightsmith.run.locate.inputs import EMBEDDED
from weightsmith.run.options.ablate import AblateLoraOptions, AblateOptions, AblateReplayOptions
from weightsmith.run.options.knowledge import BenchOptions, CompareOptions
from weightsmith.run.session import would_fill

_WRITING = 16
"""Requests of a batch from which the model writes by itself."""
_ROUGH = (
    "Editors stop when the wanted class or answer leads, so what they need is a bound; statistics of what is preserved are "
    "read once a method, and less of it where they have settled before. Cells that are there are known by their names: one "
    "of another model or of other data is measured again."
)


@dataclass(frozen=True, eq=False)
class _Bench:
    """What is measured on: how fast, what is preserved, and what a batch of so many edits is judged by."""

    options: BenchOptions
    pace: Pace
    steps: tuple[Step, ...]
    reads: str
    preserved: float
    moments: int
    aside: float
    held_out: int
    classes: int
    requests: Sequence[TextRequest]
    most: int

    def measured(self, size: int) -> Step:
        """What is measured of a cell."""
        if self.reads == "images":
            views = self.options.n_views if self.options.views != "none" else 0
            step = passes(self.pace, "", "", self.held_out + 2 * size * (1 + views))
            seconds = self.pace.passes(self.held_out) + 2 * self.pace.passes(size * (1 + views), size)
            return replace(step, seconds=seconds + 2 * scoring(self.held_out, self.classes))
        asked = self.requests[:size]
        return answering(self.pace, asked, written=min(size, _WRITING), name="", aside=3 * self.aside)


def compare(options: CompareOptions) -> Plan:
    """What `weightsmith.run.compare.command.compare` would do. Raises as it does, where that shows beforehand."""
    check_options(options)
    stem = "again" if options.requests is not None else user_path(options.data_path).stem
    folder = would_fill(options, KIN, f"{stem}-compare")
    sizes, seeds = sweep_of(options, earlier_of(options))
    notes: list[str] = []
    bench = _bench(options, folder, max(sizes), notes)
    methods = options.methods or METHODS[bench.reads]
    left = [size for size in sizes if size > bench.most]
    if left:
        notes.append(f"There are at most {bench.most} requests, so batches of more are left out.")
    solved = {method: solving(bench.pace, method, 1, bench.preserved, moments=bench.moments) for method in methods}
    steps = [*bench.steps, *(_rename(one, f"statistics, {method}") for method, one in solved.items())]
    for method, size, seed in product(methods, [size for size in sizes if size <= bench.most], seeds):
        there = (folder.path / "cells" / file_of(method, size, seed)).is_file() and not options.overwrite
        steps.append(_cell(bench, method, size, f"{method}, {size} edits, seed {seed}", there))
    steps.append(figures(*[Drawing(panels=1)] * (len(COMPARED) + 1)))
    return _plan("compare", folder, bench, steps, notes)


def ablate(options: AblateOptions) -> Plan:
    """What `weightsmith.run.ablate.command.ablate` would do. Raises as it does, where that shows beforehand."""
    check_ablation(options)
    way, _ = WAYS[type(options)]
    folder = would_fill(options, ABLATE_KIN, f"{user_path(options.data_path).stem}-ablate-{way}")
    notes: list[str] = []
    bench = _bench(options, folder, options.max_edits, notes)
    (method,) = options.edit_method
    once = _rename(solving(bench.pace, method, 1, bench.preserved, moments=bench.moments), f"statistics, {method}")
    steps = [*bench.steps, once]
    if isinstance(options, AblateLoraOptions):
        steps.append(_rename(solving(bench.pace, method, options.max_edits, 0.0), f"solve, {method}"))
        starts = [("SVD", fit) for fit in options.fit_steps] + [("random", fit) for fit in options.fit_steps if fit]
        agreeing = bench.pace.passes(2 * options.max_edits, options.max_edits)
        for seed in options.seeds:
            names = ["the edit itself"]
            names += [f"rank {rank}, {start} start, {fit} fit steps" for start, fit in starts for rank in options.ranks]
            for name in names:
                step = _rename(bench.measured(options.max_edits), f"{name}, seed {seed}")
                steps.append(replace(step, what="an adapter, and what it does", seconds=step.seconds + agreeing))
    if isinstance(options, AblateReplayOptions):
        steps += _streams(options, bench, method)
    steps.append(figures(*_drawings(options)))
    return _plan(f"ablate {way}", folder, bench, steps, notes)


def _drawings(options: AblateOptions) -> list[Drawing]:
    if isinstance(options, AblateReplayOptions):
        return [Drawing(panels=2 * len(options.buffers))] * 2
    return [Drawing(panels=4)]


def _streams(options: AblateReplayOptions, bench: _Bench, method: str) -> list[Step]:
    """A stream a setting; after each batch all edits so far are asked."""
    batches = -(-options.max_edits // options.batch_size)
    asked = options.batch_size * batches * (batches + 1) / 2
    found: list[Step] = []
    settings = [(0.0, 0, "none"), *product(options.rates, options.buffers, options.strategies)]
    for (rate, buffer, strategy), seed in product(settings, options.seeds):
        size = round(options.batch_size * (1 + rate))
        # What ftm holds to is read by every stream; statistics of the others are read once and kept.
        first = solving(bench.pace, method, size, bench.preserved if method == "ftm" else 0.0, moments=bench.moments)
        one = solving(bench.pace, method, size, 0.0)
        measured = bench.measured(options.max_edits)
        held = passes(bench.pace, "", "", asked)
        name = "no replay" if strategy == "none" else f"rate {rate:g}, buffer {buffer}, {strategy}"
        found.append(
            Step(
                name=f"{name}, seed {seed}",
                what=f"{batches} batches of {options.batch_size} edits",
                forwards=first.forwards + (batches - 1) * one.forwards + held.forwards + measured.forwards,
                seconds=first.seconds + (batches - 1) * one.seconds + held.seconds + measured.seconds,
                memory=max(first.memory, measured.memory),
            )
        )
    return found


def _cell(bench: _Bench, method: str, size: int, name: str, there: bool) -> Step:
    solve, measured = solving(bench.pace, method, size, 0.0), bench.measured(size)
    return Step(
        name=name,
        what="solve and measure",
        forwards=solve.forwards + measured.forwards,
        seconds=solve.seconds + measured.seconds,
        memory=max(solve.memory, measured.memory),
        there=there,
    )


def _bench(options: BenchOptions, folder: RunFolder, most: int, notes: list[str]) -> _Bench:
    """What is measured on, as far as it is there."""
    if options.model == "auto" and options.data_path in EMBEDDED:
        model, step, pace = embedded(options.data_path, options.seed, folder, check_device(options.device))
        return _images(options, model, pace, (step,), notes)
    started = time.perf_counter()
    if options.model != "auto":
        model, _ = of_name(options.model, options.device)
        if model.family.reads == "images":
            load_step = loading(started)
            return _images(options, model, pace_of(model, 64), (load_step,), notes)
    found = language(options.model, options)
    started = time.perf_counter()
    requests = facts_of(options.data_path, found.world, most, options.seed, usable=True)
    kept = Kept.of(found.model, options.preserve, found.world)
    preserved, moments, aside = preserved_passes(kept, found.model), moments_of(kept, found.model), aside_of(kept)
    steps = (*found.steps, replace(loading(started), name="read", what="facts, and the text that is preserved"))
    return _Bench(options, found.pace, steps, "text", preserved, moments, aside, 0, 0, requests, len(requests))


def _images(options: BenchOptions, model: Model, pace: Pace, made: tuple[Step, ...], notes: list[str]) -> _Bench:
    train, val, held_out = parts_of(options, model, notes, blank=True)
    errors = passes(pace, "errors", f"a pass over {len(val)} images of the validation part", len(val))
    notes.append("Requests are errors: fewer are edited where the model makes fewer.")
    return _Bench(
        options, pace, (*made, errors), "images", len(train), 0, 0.0, len(held_out), model.n_classes, (), len(val)
    )


def _rename(step: Step, name: str) -> Step:
    return replace(step, name=name)


def _plan(command: str, folder: RunFolder, bench: _Bench, steps: Sequence[Step], notes: Sequence[str]) -> Plan:
    told = [*notes, _ROUGH, HOW]
    return Plan(
        command=command, steps=steps, folder=folder.path, weights=bench.pace.weights, spread=bench.options, notes=told
    )
