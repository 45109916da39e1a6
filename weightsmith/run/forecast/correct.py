"""The plans of `weightsmith run` and `baseline`."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import open_data, open_part
from weightsmith.data.split import Source, Split
from weightsmith.edit import Patcher, editors
from weightsmith.files import user_path
from weightsmith.locate import ImageCases, grids
from weightsmith.locate.forecast import sweep_cost
from weightsmith.models import Model, load
from weightsmith.report.plots import MOST_CELLS_WITH_TEXT
from weightsmith.run.correct.baseline import KIN, opened, stem_of
from weightsmith.run.correct.pipeline import check_options, fingerprint, folder_of, stages_of
from weightsmith.run.editing import AUTO
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import WORDS, Drawing, figures, held_by, loading, passes, scoring, training
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import TRAIN_DEFAULTS, check_device, image_size_of, new_model, train_options
from weightsmith.run.options.correct import BaselineOptions, RunOptions
from weightsmith.run.session import would_fill

_COUNTS = 3
"""Counts that are not nought in the row of a class, about."""
_READ = 8
"""Times that edits are read in a solve."""
_MOMENTS, _OF_LAYER = 6, 2
"""Matrices of the keys' width that are there at a time, in float64, and how many more of each further layer."""
_WIDER, _POOLS = 1.25, 6
"""A row of keys and stream, in keys; copies of the rows of both populations."""
_MOST_KEPT = 2**30
"""Bytes of activations that editors keep for gradients at most: they take as many edits at a time."""
_STEPS = 25
"""Steps in which an editor that says nothing of them finds a wanted value; most errors need fewer."""


def run(options: RunOptions) -> Plan:
    """What `weightsmith.run.correct.pipeline.run` would do. Raises as it does, where that shows without running the network."""
    started = time.perf_counter()
    check_options(options)
    folder = folder_of(options)
    source = _source(options)
    held_out = options.held_out_ratio if options.held_out_from == "train" else options.held_out_from
    split = source.split(held_out, options.seed, options.val_ratio)
    device = check_device(options.device)
    model = (
        load(options.checkpoint, device=device) if options.checkpoint else _untrained(options, source, device, folder)
    )
    load_step = loading(started)
    pace = pace_of(model, train_options(options, TRAIN_DEFAULTS).batch_size)
    methods = _methods(options, model)
    make = {
        "data": lambda: [Step(name="data", what=_told(split.parts()))],
        "train": lambda: [_training(options, pace, split)],
        "locate": lambda: _tracing(options, model, pace, split),
        "edit": lambda: [_editing(options, method, pace, len(split.train)) for method in methods],
        "eval": lambda: [_evaluating(options, model, pace, _proof(options, split), len(methods))],
    }
    steps: list[Step] = [load_step]
    for stage in stages_of(options):
        there = folder.done(stage) == fingerprint(options, stage) and not options.overwrite
        steps += [dataclasses.replace(step, there=there) for step in make[stage]()]
    steps.append(figures(*_drawings(options, model, len(methods))))
    notes = [
        f"Counted with {options.max_samples} errors to trace and {options.max_edits} to edit: fewer are found where the model "
        "makes fewer. What editors need is a bound: they stop when the wanted class leads."
    ]
    return Plan(
        command="run",
        steps=steps,
        folder=folder.path,
        weights=pace.weights,
        held=held_by(*split.parts().values()),
        notes=[*notes, HOW],
    )


def baseline(options: BaselineOptions) -> Plan:
    """What `weightsmith.run.correct.baseline.baseline` would do. Raises as it does, where that shows beforehand."""
    started = time.perf_counter()
    device = check_device(options.device)
    source, split, recipe = opened(options, blank=True)
    folder = would_fill(options, KIN, stem_of(source))
    model = new_model(options, source, device)
    load_step = loading(started)
    pace = pace_of(model, recipe.batch_size)
    test = len(split.val) + len(split.held_out)
    steps = [
        load_step,
        training(pace, len(split.train), len(split.val), recipe),
        _scored(passes(pace, "test", f"{test} images of the validation and test parts", test), 2, test // 2, model),
        figures(Drawing(panels=2)),
    ]
    held = held_by(*split.parts().values())
    return Plan(command="baseline", steps=steps, folder=folder.path, weights=pace.weights, held=held, notes=[HOW])


def _drawings(options: RunOptions, model: Model, methods: int) -> list[Drawing]:
    """The curves of the training, the effects of layers, and a confusion matrix before and after each method."""
    stages = stages_of(options)
    counts = _COUNTS * model.n_classes if model.n_classes <= MOST_CELLS_WITH_TEXT else 0
    drawn = {
        "train": Drawing(panels=2 * (options.checkpoint is None)),
        "locate": Drawing(panels=1),
        "eval": Drawing(panels=1 + methods, texts=counts * (1 + methods)),
    }
    return [drawing for stage, drawing in drawn.items() if stage in stages and drawing.panels]


def _source(options: RunOptions) -> Source:
    cache = user_path(options.cache_dir) if options.cache_dir else None
    return open_data(options.data_path, image_size_of(options), cache, blank=True)


def _untrained(options: RunOptions, source: Source, device: str, folder: RunFolder) -> Model:
    """The network that is trained, or the one that an earlier call has trained: of one shape."""
    if options.stage in ("locate", "edit", "eval") and (folder.path / "model" / "config.json").is_file():
        return load(folder.path / "model", device=device)
    return new_model(options, source, device)


def _told(parts: dict[str, ImageSet]) -> str:
    return ", ".join(f"{name} {len(images)}" for name, images in parts.items()) + " images"


def _methods(options: RunOptions, model: Model) -> tuple[str, ...]:
    """What `auto` comes to, as far as it shows: the patcher where the network has what it edits."""
    if options.edit_method != (AUTO,):
        return options.edit_method
    return ("patcher",) if Patcher.suits(model) else ("alphaedit",)


def _training(options: RunOptions, pace: Pace, split: Split) -> Step:
    if options.checkpoint is not None:
        return Step(name="train", what=f"nothing: the classifier is {options.checkpoint}")
    return training(pace, len(split.train), len(split.val), train_options(options, TRAIN_DEFAULTS))


def _tracing(options: RunOptions, model: Model, pace: Pace, split: Split) -> list[Step]:
    count = min(options.max_samples, len(split.train))
    which = np.arange(min(count, 16))
    labels = torch.zeros(len(which), dtype=torch.int64)
    noise = EmbeddingNoise(options.noise, options.num_ablations, options.seed)
    names = tuple(str(i) for i in which)
    cases = ImageCases(model, names, split.train.pixels(which), noise, labels, labels + (model.n_classes > 1))
    sites = grids.layers(model, options.trace_site, "cls")
    cost = sweep_cost(model, cases, sites, count)
    what = f"{len(sites)} layers in {count} images, {options.num_ablations} noise samples each"
    return [
        passes(pace, "errors", f"a pass over {len(split.train)} images to find errors", len(split.train)),
        Step(
            name="locate",
            what=what,
            forwards=cost.block_forwards,
            seconds=cost.seconds,
            memory=cost.memory,
        ),
    ]


def _editing(options: RunOptions, method: str, pace: Pace, images: int) -> Step:
    return solving(pace, method, options.max_edits, min(images, _preserved(method) or images), beside=images)


def solving(
    pace: Pace,
    method: str,
    edits: int,
    preserved: float,
    beside: float = 0.0,
    moments: int = 0,
    asked: int | None = None,
    layers: int = 1,
    at_once: int = 256,
    copies: int = 1,
) -> Step:
    """One solve: keys or states of what is preserved, and gradient steps for each edit.

    Args:
        preserved: inputs whose keys are read; beside: inputs of other passes, such as those that find errors.
        moments: second moments of keys that are there at a time, beside those of any solve.
        asked: steps for each edit [the method's own].
        layers: that are edited, of a language model.
        at_once: inputs of a pass.
        copies: of the weights, beside those that are there throughout.
    """
    fields = {field.name: field.default for field in dataclasses.fields(editors()[method])}
    own = next((fields[name] for name in ("steps", "head_steps") if isinstance(fields.get(name), int)), _STEPS)
    steps = asked or (int(own) if isinstance(own, int) else _STEPS)
    # The patcher and the head work behind the last block alone, on states that one pass gives.
    inside = 0.0 if method in ("patcher", "head") else steps * edits
    # What is edited is read again and again, all of it at a time: before, for keys and values, and after each round.
    again = _READ * edits
    # ftm keeps the keys and the stream of what it holds to, and of that what each batch leaves, of text and of prompts.
    rows = min(_preserved(method), preserved * (WORDS if moments else 1)) if method == "ftm" else 0
    anchor = round(rows * 4 * _WIDER * pace.keys * (_POOLS if moments else 2))
    return Step(
        name=f"edit, {method}",
        what=f"{edits} edits, {preserved:.0f} inputs preserved",
        forwards=pace.forwards(preserved + beside + again + 3 * inside),
        seconds=pace.passes(preserved + beside) + pace.passes(again, edits) + pace.descents(inside, edits),
        memory=max(at_once * pace.alive, min(edits * pace.kept, _MOST_KEPT))
        + copies * pace.weights
        + anchor
        + (_MOMENTS + moments + _OF_LAYER * (layers - 1)) * 8 * pace.keys**2,
    )


def _preserved(method: str) -> int:
    """Inputs that an editor preserves at most; 0 where it takes all."""
    fields = {field.name: field.default for field in dataclasses.fields(editors()[method])}
    default = fields.get("preserved", 0)
    return default if isinstance(default, int) else 0


def _proof(options: RunOptions, split: Split) -> int:
    """Images that the edit is judged on."""
    held = 0 if options.held_out_from == "none" else len(split.held_out)
    if options.edit_from not in ("train", "val"):
        site = open_part(options.edit_from, image_size_of(options), None)
        held += round((1 - options.stream_ratio) * len(site))
    return held


def _evaluating(options: RunOptions, model: Model, pace: Pace, held: int, methods: int) -> Step:
    views = 1 + (options.n_views if options.views != "none" else 0)
    what = f"{held} held-out images before and after, {options.n_views} views an edit"
    step = passes(pace, "eval", what, held * (1 + methods) + 2 * options.max_edits * views * methods)
    seconds = pace.passes(held * (1 + methods)) + 2 * methods * pace.passes(
        options.max_edits * views, options.max_edits
    )
    return _scored(dataclasses.replace(step, seconds=seconds), 2 * methods, held, model)


def _scored(step: Step, times: int, images: int, model: Model) -> Step:
    return dataclasses.replace(step, seconds=step.seconds + times * scoring(max(images, 1), model.n_classes))
