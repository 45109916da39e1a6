"""The plan of `weightsmith compress`."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from weightsmith.data.sources import open_data
from weightsmith.data.split import Split
from weightsmith.files import user_path
from weightsmith.models import Model, load
from weightsmith.prune import shape_of
from weightsmith.prune.refit import images_that_fit
from weightsmith.prune.search.ground import views_of
from weightsmith.prune.search.within import ROUNDS
from weightsmith.run.compress.baseline import baseline_place, resolved, trains
from weightsmith.run.compress.command import kin_of, of_existing
from weightsmith.run.compress.goals import Goal, check_goals, goals_of, within_reach
from weightsmith.run.compress.record import OPTIMIZED
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.evaluate import EVALUATED, predicting, timing
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, held_by, loading, training
from weightsmith.run.forecast.plan import KEPT, Plan, Step
from weightsmith.run.job import TRAIN_DEFAULTS, check_device, image_size_of, new_model, train_options
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.session import would_fill

_TRIALS = 21
"""Sizes that a search under a KL budget tries: six in each of its rounds, nine in the last."""
_SCORED = 6
"""Passes, forward and backward, in which the units of a model are scored once by all ways together, an image."""
_HALVED = 0.75
"""Share of the multiplications that models have on average which are tried by halves, between a half and all of them."""
_EXACT_SHARE = 0.5
"""Of a pass that a trial takes: it starts where it differs from the trial before."""


def compress(options: CompressOptions) -> Plan:
    """What `weightsmith.run.compress.compress` would do. Raises as it does, where that shows beforehand."""
    started = time.perf_counter()
    options = resolved(options)
    check_goals(options)
    device = check_device(options.device)
    if not trains(options):
        options = of_existing(options)
    goals, optimizes = goals_of(options), options.mode in ("full", "optimize")
    folder = would_fill(options, kin_of(options, goals), f"{user_path(options.data_path).stem}-compress")
    place = baseline_place(options, folder.path)
    there = (place / "config.json").is_file() and not (options.overwrite and trains(options))
    given = str(place) if there else options.checkpoint
    model = load(given, device=device) if given is not None else None
    size = image_size_of(options) if model is None else model.preprocess.size
    cache = user_path(options.cache_dir) if options.cache_dir else None
    source = open_data(options.data_path, size, cache, blank=True)
    held_out = options.held_out_ratio if options.held_out_from == "train" else options.held_out_from
    split = source.split(held_out, options.seed, options.val_ratio)
    model = model or new_model(options, source, device)
    load_step = loading(started)
    pace = pace_of(model, train_options(options, TRAIN_DEFAULTS).batch_size)
    steps: list[Step] = [load_step]
    if trains(options) and options.checkpoint is None:
        recipe = train_options(options, TRAIN_DEFAULTS)
        steps.append(training(pace, len(split.train), len(split.val), recipe, there=there, name="baseline"))
    notes: list[str] = []
    if optimizes:
        goals = within_reach(goals, options, shape_of(model), notes)
        steps += [_goal(options, goal, model, pace, split, folder) for goal in goals]
        if options.study:
            steps.append(_study(options, model, pace))
    if options.mode in ("full", "evaluate"):
        held = len(split.held_out)
        names = ["baseline", *(goal.name for goal in goals)]
        paces = dict.fromkeys(names, pace)
        steps += [*predicting(paces, held, model.n_classes), timing(list(paces.values()), options.rounds)]
    drawn = [Drawing(panels=2)] if trains(options) and options.checkpoint is None and not there else []
    drawn += [Drawing(panels=2 * len(goals)), *([Drawing(panels=1)] if options.study else [])] if optimizes else []
    drawn += [EVALUATED] if options.mode in ("full", "evaluate") else []
    steps.append(figures(*drawn))
    notes.append(
        "Searches are counted by the most that they try, with passes of the whole model: smaller ones are faster. A model "
        "that is there is known by its name: one of other options is refused by the command."
    )
    return Plan(
        command="compress",
        steps=steps,
        folder=folder.path,
        weights=3 * pace.weights,
        held=held_by(*split.parts().values()),
        spread=options,
        notes=[*notes, HOW],
    )


def _goal(options: CompressOptions, goal: Goal, model: Model, pace: Pace, split: Split, folder: RunFolder) -> Step:
    """One smaller model: statistics, scores of its units, trials, fitted maps, and the recovery."""
    images, judging = len(goal.images(options, split)), len(goal.judging(options, split))
    there = (folder.path / OPTIMIZED / goal.name / "config.json").is_file() and not options.overwrite
    views = views_of(judging)
    # A model of a share of the multiplications costs that share; on the way there it is between the whole and that. A search
    # by halves looks at half of what is there first.
    share = (1 + goal.value) / 2 if goal.method == "eap" else _HALVED
    tries = _TRIALS if goal.method == "acdc" else ROUNDS
    looked = judging * (1 + views) * (tries + 2 if goal.method == "acdc" else 2)
    # Keys are counted once for the moments and once a round for the scores, maps are fitted in every trial.
    counted, scored, fitted = images * (1 + share * ROUNDS), share * images * ROUNDS, share * images * tries
    read = counted + images + fitted + looked
    product = _products(model)
    step = Step(
        name=goal.name,
        what=f"{goal.method} {goal.value:g}, on {images} images, judged on {judging}, with {views} views each",
        forwards=pace.forwards(read + 3 * scored),
        seconds=pace.passes(read, 64) + pace.descents(scored, 64) + model.n_tokens * (counted + fitted) * product,
        memory=_search_memory(model, pace, images),
        there=there,
    )
    if not options.recover_epochs:
        return step
    recipe = replace(train_options(options, TRAIN_DEFAULTS), epochs=options.recover_epochs)
    more = training(pace, len(split.train), len(split.val), recipe)
    return replace(
        step,
        what=f"{step.what}, then {options.recover_epochs} epochs of distillation",
        forwards=step.forwards + share * more.forwards + pace.forwards(options.recover_epochs * len(split.train)),
        seconds=step.seconds + share * more.seconds + pace.passes(options.recover_epochs * len(split.train), 64),
        memory=max(step.memory, more.memory + pace.weights),
    )


def _widths(model: Model) -> list[int]:
    """Keys' width of every sublayer."""
    shape = shape_of(model)
    return [width for width in (*(n * shape.head_width for n in shape.heads), *shape.neurons) if width]


def _products(model: Model) -> float:
    """Seconds of counting the products of one token's keys in every sublayer."""
    rows, total = 512, 0.0
    for width in set(_widths(model)):
        keys, sums = torch.ones(rows, width), torch.zeros(width, width, dtype=torch.float64)
        found = []
        for _ in range(3):
            started = time.perf_counter()
            sums.add_(keys.mT @ keys)
            found.append(time.perf_counter() - started)
        total += _widths(model).count(width) * min(found) / rows
    return total


def _search_memory(model: Model, pace: Pace, images: int) -> int:
    """Bytes beside the models: statistics of keys, what the whole model's stream was, and what is done over them."""
    widths, tokens, shape = _widths(model), model.n_tokens, shape_of(model)
    # Of all tokens and of CLS, in float64.
    statistics = 2 * 8 * sum(width**2 for width in widths)
    shown = images_that_fit(model, images)
    each = 4 * tokens * shape.width * shown
    streams = (2 * model.n_layers + 2) * each
    # A fit has the keys of all images, the stream before and behind it, and what is solved.
    fitted = 4 * tokens * max(widths) * shown + 3 * each + 5 * 8 * max(widths) ** 2
    # Scores have statistics of their own; keys with gates, what lies beside them and their gradients, then units in float64.
    batch = min(images, max(1, 2048 // tokens))
    counted = statistics + batch * (4 * tokens * sum(widths) + pace.alive)
    scored = batch * (3 * 4 * tokens * sum(widths) + 3 * 8 * sum(widths) + pace.kept)
    # What counting had is mostly still there while units are scored: it was freed in small pieces.
    return statistics + streams + max(streams, fitted, statistics + min(counted, KEPT) + scored)


def _study(options: CompressOptions, model: Model, pace: Pace) -> Step:
    """Exact removal of single units against every way to score them, and curves of what circuits keep."""
    shape = shape_of(model)
    units = sum(shape.heads) + 16 * len(shape.neurons)
    inputs = options.study_images * (units * _EXACT_SHARE + 6 * _SCORED + 100)
    return Step(
        name="study",
        what=f"exact removal of about {units} units on {options.study_images} images, six ways to score them",
        forwards=pace.forwards(inputs),
        seconds=pace.passes(inputs),
        memory=options.study_images * pace.kept,
    )
