"""The plan of `weightsmith compress`."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.data.sources import open_data
from weightsmith.data.split import Split
from weightsmith.files import user_path
from weightsmith.models import Model, load
from weightsmith.prune import shape_of
from weightsmith.prune.search.within import ROUNDS
from weightsmith.run.compress.baseline import baseline_place, resolved, trains
from weightsmith.run.compress.command import kin_of, of_existing
from weightsmith.run.compress.goals import Goal, check_goals, goals_of, within_reach
from weightsmith.run.compress.record import OPTIMIZED
from weightsmith.run.folder import RunFolder
from weightsmith.run.forecast.evaluate import predicting, timing
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import figures, training
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import TRAIN_DEFAULTS, check_device, image_size_of, new_model, train_options
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.session import would_fill

_TRIALS = 21
"""Sizes that a search under a KL budget tries: six in each of its rounds, nine in the last."""
_SCORED = 6
"""Passes, forward and backward, in which the units of a model are scored once."""
_EXACT_SHARE = 0.5
"""Of a pass that a trial takes: it starts where it differs from the trial before."""


def compress(options: CompressOptions) -> Plan:
    """What `weightsmith.run.compress.compress` would do. Raises as it does, where that shows beforehand."""
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
    pace = pace_of(model, train_options(options, TRAIN_DEFAULTS).batch_size)
    steps: list[Step] = []
    if trains(options) and options.checkpoint is None:
        recipe = train_options(options, TRAIN_DEFAULTS)
        steps.append(training(pace, len(split.train), len(split.val), recipe, there=there, name="baseline"))
    notes: list[str] = []
    if optimizes:
        goals = within_reach(goals, options, shape_of(model), notes)
        steps += [_goal(options, goal, pace, split, folder) for goal in goals]
        if options.study:
            steps.append(_study(options, model, pace))
    if options.mode in ("full", "evaluate"):
        held = len(split.held_out)
        names = ["baseline", *(goal.name for goal in goals)]
        paces = dict.fromkeys(names, pace)
        steps += [*predicting(paces, held), timing(list(paces.values()), options.rounds)]
    steps.append(figures(4))
    notes.append(
        "Searches are counted by the most that they try, with passes of the whole model: smaller ones are faster. A model "
        "that is there is known by its name: one of other options is refused by the command."
    )
    return Plan(command="compress", steps=steps, folder=folder.path, weights=3 * pace.weights, notes=[*notes, HOW])


def _goal(options: CompressOptions, goal: Goal, pace: Pace, split: Split, folder: RunFolder) -> Step:
    """One smaller model: scores of its units, trials, fitted maps, and the recovery."""
    images, judging = len(goal.images(options, split)), len(goal.judging(options, split))
    there = (folder.path / OPTIMIZED / goal.name / "config.json").is_file() and not options.overwrite
    # Keys are read once for the moments, and once a round to fit the maps to the whole model.
    read = images * (1 + 2 * ROUNDS)
    scored = ROUNDS * _SCORED * images
    tried = _TRIALS * _EXACT_SHARE * (images + judging) if goal.method == "acdc" else ROUNDS * (images + judging)
    step = Step(
        name=goal.name,
        what=f"{goal.method} {goal.value:g}, on {images} images, judged on {judging}",
        forwards=pace.forwards(read + 3 * scored + tried),
        seconds=pace.passes(read + tried) + scored * pace.trained,
        memory=min(2 * pace.alive * (images + judging), 2**30) + 2 * pace.weights,
        there=there,
    )
    if not options.recover_epochs:
        return step
    recipe = replace(train_options(options, TRAIN_DEFAULTS), epochs=options.recover_epochs)
    more = training(pace, len(split.train), len(split.val), recipe)
    return replace(
        step,
        what=f"{step.what}, then {options.recover_epochs} epochs of distillation",
        forwards=step.forwards + more.forwards + pace.forwards(options.recover_epochs * len(split.train)),
        seconds=step.seconds + more.seconds + pace.passes(options.recover_epochs * len(split.train)),
        memory=max(step.memory, more.memory + pace.weights),
    )


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
