"""The plan of `weightsmith merge`."""

from __future__ import annotations

import time

from weightsmith.merge.forecast import merge_cost
from weightsmith.models import load
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, loading, passes
from weightsmith.run.forecast.plan import Plan, Step, amount
from weightsmith.run.merge.command import asked, search_of
from weightsmith.run.merge.search import Search
from weightsmith.run.options.merge import MergeOptions


def merge(options: MergeOptions) -> Plan:
    """What `weightsmith.run.merge.merge` would do. Raises as it does, where that shows in the tensors tried here."""
    method, options, _ = asked(options)
    started = time.perf_counter()
    search = search_of(options, method, blank=True)
    load_step = loading(started)
    cost = merge_cost(
        method,
        options.base,
        options.models,
        str(options.out),
        weights=options.weights or None,
        head=options.head,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        sha256=options.sha256,
        overwrite=options.overwrite,
    )
    step = Step(
        name=f"merge, {method.name}",
        what=f"{cost.tensors} tensors, {cost.numbers:,} numbers; {amount(cost.read)} are read and {amount(cost.size)} written "
        f"in {cost.files} file{'s' * (cost.files > 1)}, and read back",
        seconds=cost.seconds,
        memory=cost.memory,
    )
    notes = [
        "A merge itself runs no network, so it has no block forwards.",
        f"The time is from {cost.timed:.0%} of the numbers, merged just now and not written; a disk that writes slower than "
        "this machine computes takes longer. docs/commands.md says how far estimates were from real runs.",
    ]
    steps, weights = [step], 0
    if search is not None:
        paces = [pace_of(one.model, 256, trains=False) for one in search.bench.judges]
        steps = [
            load_step,
            *_searched(search, paces, step, _loaded(options)),
            step,
            figures(Drawing(panels=len(paces))),
        ]
        weights = sum(pace.weights for pace in paces) + paces[0].weights
        notes += [
            "Accuracies that an earlier search has measured are in the cache and cost nothing: they are counted.",
            HOW,
        ]
    return Plan(command="merge", steps=steps, folder=cost.target, weights=weights, notes=notes)


def _loaded(options: MergeOptions) -> float:
    """Seconds of loading a model of the base's sizes, as each merged one is."""
    started = time.perf_counter()
    load(str(options.base))
    return time.perf_counter() - started


def _searched(search: Search, paces: list[Pace], merged: Step, loaded: float) -> list[Step]:
    """The merges that are judged, each loaded with `loaded` seconds.

    Then the passes over validation images and, once, over test images that judge them.
    """
    bench, tried = search.bench, len(search.coefficients)
    judged = list(zip(bench.judges, paces, strict=True))
    steps = [
        Step(
            name="search, merges",
            what=f"a merge for each of {tried} coefficients and one for the test, each loaded",
            seconds=(tried + 1) * (merged.seconds + loaded),
            memory=merged.memory + paces[0].weights,
        )
    ]
    for one, pace in judged:
        own = one is not bench.control
        images = (tried + 1) * len(one.val) + (3 if own else 2) * len(one.test)
        what = f"{len(one.val)} validation images at {tried} coefficients and in its own model, {len(one.test)} test images"
        steps.append(passes(pace, f"search, {one.name}", what, images))
    return steps
