"""The plan of `weightsmith artificial`."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from weightsmith.data.artificial import tasks
from weightsmith.data.tables import open_table
from weightsmith.files import user_path
from weightsmith.models import Model
from weightsmith.run.artificial import sweep
from weightsmith.run.artificial.command import check_options, kin_of, of_existing, stages_of
from weightsmith.run.artificial.data import DATA, NAMES, RECORD
from weightsmith.run.artificial.networks import BASE, FINETUNED, network
from weightsmith.run.artificial.networks import RECORD as NETWORK
from weightsmith.run.artificial.pair import pair_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, loading, passes, training
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import check_device
from weightsmith.run.options.artificial import ArtificialOptions
from weightsmith.run.session import would_fill
from weightsmith.train import TrainOptions

_NUMBERS = 20
"""Bytes a number of a table while it is made: in float64, as a copy of that, and in float32."""


def artificial(options: ArtificialOptions) -> Plan:
    """What `weightsmith.run.artificial.command.artificial` would do. Raises as it does, where that shows beforehand."""
    started = time.perf_counter()
    check_options(options)
    device = check_device(options.device)
    alone = options.pretrained is not None
    if options.stage not in ("full", "data") and not alone:
        options = of_existing(options)
    stages = stages_of(options)
    stem = "artificial" if not alone else f"{user_path(options.data_path or '').stem}-arithmetic"
    folder = would_fill(options, kin_of(stages), stem)
    if alone:
        base, _, judges, notes = pair_of(options, device)
        load_step = loading(started)
        pace = pace_of(base, options.batch_size, trains=False)
        rows = sum(len(one.val) + len(one.test) for one in judges)
        steps = [load_step, _swept(options, folder, pace, rows), figures(_sweep(options, len(judges)))]
        return Plan(
            command="artificial",
            steps=steps,
            folder=folder.path,
            weights=2 * pace.weights,
            spread=options,
            notes=[*notes, HOW],
        )
    sizes = [_rows(options, folder, place) for place in range(2)]
    width, classes = sizes[0][1], sizes[0][2]
    model: Model = network(width, classes, options.seed, device)
    load_step = loading(started)
    pace = pace_of(model, options.batch_size)
    parts = [_parts(options, count) for count, _, _ in sizes]
    steps = [load_step]
    if "data" in stages:
        there = (folder.path / RECORD).is_file() and not options.overwrite
        told = f"tables of {sizes[0][0]} and {sizes[1][0]} rows, written and read"
        data = Step(name="data", what=told, seconds=_written(sizes), memory=max(_NUMBERS * n * d for n, d, _ in sizes))
        steps.append(replace(data, there=there))
    for stage, which, epochs, (train, val, _) in (
        ("base", BASE, options.epochs, parts[0]),
        ("finetune", FINETUNED, options.finetune_epochs or options.epochs, parts[1]),
    ):
        if stage in stages:
            there = (folder.path / which / NETWORK).is_file() and not options.overwrite
            recipe = TrainOptions(epochs=epochs, batch_size=options.batch_size, lr=options.lr, seed=options.seed)
            steps.append(replace(training(pace, train, val, recipe, name=stage), there=there))
    if "sweep" in stages:
        rows = sum(val + test for _, val, test in parts)
        steps.append(_swept(options, folder, pace, rows))
    drawn = [Drawing(panels=2) for stage in ("base", "finetune") if stage in stages]
    drawn += [_sweep(options, 2)] if "sweep" in stages else []
    steps.append(figures(*drawn))
    # Both tables in float32, as they were checked when they were made and as they are read again.
    held = sum(2 * 4 * n * d for n, d, _ in sizes)
    weights = 2 * pace.weights
    return Plan(
        command="artificial", steps=steps, folder=folder.path, weights=weights, held=held, spread=options, notes=[HOW]
    )


def _sweep(options: ArtificialOptions, data: int) -> Drawing:
    """The figure of the sweep: a panel for each operation and data set."""
    return Drawing(panels=len(options.operations) * data)


def _swept(options: ArtificialOptions, folder: RunFolder, pace: Pace, rows: int) -> Step:
    cells = list(product(options.operations, options.modes, options.coefficients))
    names = [f"{operation}-{mode}-{coefficient!r}.json" for operation, mode, coefficient in cells]
    there = sum((folder.path / sweep.CELLS / name).is_file() for name in names)
    step = passes(
        pace,
        "sweep",
        f"{len(cells)} cells of {rows} rows or images, {there} of them measured already",
        rows * (len(cells) - there + 2),
    )
    # The vectors, and as much again for the tensors that they are put on.
    return replace(step, memory=step.memory + pace.weights * (1 + len(options.operations) * len(options.modes)))


def _rows(options: ArtificialOptions, folder: RunFolder, place: int) -> tuple[int, int, int]:
    """(rows, features, classes) of a table: of the one given, of the one that is there, or of the one that is made."""
    given = (options.base_data, options.finetune_data)[place]
    path = user_path(given) if given else folder.path / DATA / f"{NAMES[place]}.csv"
    if given or path.is_file():
        source = open_table(path)
        train = source.part("train")
        return len(train), train.channels, source.n_classes
    task = tasks(options.preset)[place]
    return task.n_samples, task.n_features, task.n_classes


def _written(sizes: Sequence[tuple[int, int, int]]) -> float:
    """Seconds of writing the tables as text and of reading them, when they are made and when they are trained on."""
    rows, seconds = 100, 0.0
    for count, width, _ in sizes:
        values = np.random.default_rng(0).normal(size=(rows, width))
        line = ",".join(["%.9g"] * width) + "\n"
        started = time.perf_counter()
        text = "".join(line % tuple(row) for row in values.tolist())
        written = time.perf_counter()
        np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64, comments=None)
        seconds += count / rows * (written - started + 2 * (time.perf_counter() - written))
    return seconds


def _parts(options: ArtificialOptions, rows: int) -> tuple[int, int, int]:
    """Rows of (train, validation, test)."""
    test = round(options.held_out_ratio * rows)
    val = round(options.val_ratio * (rows - test))
    return rows - test - val, val, test
