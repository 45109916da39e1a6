"""The plan of `weightsmith evaluate`, and of what ends in it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from weightsmith.files import user_path
from weightsmith.measure.latency import LEAST_ROUNDS
from weightsmith.run.evaluate.command import KIN, check_options, placed
from weightsmith.run.evaluate.contenders import contenders, held_out_of
from weightsmith.run.evaluate.measured import BATCH_SIZES
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, held_by, loading, scoring
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.session import would_fill

EVALUATED = Drawing(panels=6)
"""The figure of an evaluation."""


def evaluate(options: EvaluateOptions) -> Plan:
    """What `weightsmith.run.evaluate.command.evaluate` would do. Raises as it does."""
    started = time.perf_counter()
    options = placed(options)
    check_options(options)
    folder = would_fill(options, KIN, f"{user_path(options.data_path).stem}-evaluate")
    notes: list[str] = []
    models, _ = contenders(options, notes)
    models, images = held_out_of(options, models, notes, blank=True)
    load_step = loading(started)
    paces = {one.name: pace_of(one.model, trains=False) for one in models}
    steps = [
        load_step,
        *predicting(paces, len(images), images.n_classes),
        timing(list(paces.values()), options.rounds),
        figures(EVALUATED),
    ]
    weights = sum(pace.weights for pace in paces.values())
    held = held_by(images)
    return Plan(command="evaluate", steps=steps, folder=folder.path, weights=weights, held=held, notes=[*notes, HOW])


def predicting(paces: dict[str, Pace], images: int, classes: int) -> list[Step]:
    """A pass of each classifier over the held-out images, and its scores."""
    return [
        Step(
            name=f"predict, {name}",
            what=f"{images} held-out images",
            forwards=pace.forwards(images),
            seconds=pace.passes(images, 64) + scoring(images, classes),
            memory=256 * pace.alive,
        )
        for name, pace in paces.items()
    ]


def timing(paces: Sequence[Pace], rounds: int) -> Step:
    """Passes of every classifier, and of the first one twice, at each batch size; fewer rounds where they are slow."""
    every = [*paces, paces[0]]
    forwards = seconds = 0.0
    for size in BATCH_SIZES:
        one = sum(pace.passes(size, size) for pace in every)
        done = max(LEAST_ROUNDS, min(rounds, int(60 / max(one, 1e-9)))) + 2  # two more warm up
        seconds += done * one
        forwards += done * sum(pace.forwards(size) for pace in every)
    what = f"{rounds} rounds at batch sizes {', '.join(map(str, BATCH_SIZES))}"
    return Step(name="timing", what=what, forwards=forwards, seconds=seconds, memory=max(BATCH_SIZES) * paces[0].alive)
