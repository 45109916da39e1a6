"""`weightsmith compress`: train a vision transformer, find what it does not need, take that out, and measure what is left."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import fields, replace

from rich.console import RenderableType

from weightsmith.circuit import Shape
from weightsmith.errors import WeightsmithError, near_path
from weightsmith.files import user_path
from weightsmith.report.compression import compressed_table
from weightsmith.report.evaluation_page import CLASSES
from weightsmith.run.compress.baseline import MODELS, baseline_of, baseline_place, resolved, trains
from weightsmith.run.compress.goals import Goal, check_goals, goals_of, within_reach
from weightsmith.run.compress.models import Workshop
from weightsmith.run.compress.record import OPTIMIZED, finished
from weightsmith.run.compress.report import FILES, evaluated_run, model_rows
from weightsmith.run.compress.study import AGREEMENT, FAITHFULNESS, study
from weightsmith.run.evaluate.evaluation import FIGURE, METRICS, PAGE, TABLE
from weightsmith.run.folder import existing_runs
from weightsmith.run.job import check_device
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.outcome import PARTLY, Outcome
from weightsmith.run.session import Kin, session
from weightsmith.run.spread import CELL_THREADS, check_spread, settings_of, to_redo

_FIXED = (
    "data_path", "held_out_from", "held_out_ratio", "val_ratio", "seed", "model", "epochs", "batch_size", "lr",
    "weight_decay", "augment", "label_smoothing", "checkpoint", "baseline_name",
)  # fmt: skip
"""Options of which a run has one value: those of its data and its baseline. Each smaller model keeps its own."""
_EVALUATION = (FIGURE, METRICS, TABLE, CLASSES, PAGE, *FILES)


def compress(options: CompressOptions) -> Outcome:
    """Do what `--mode` says.

    The baseline and every smaller model are kept when they are finished, so a run that was stopped goes on with the first
    that is not there.

    Raises:
        WeightsmithError: bad options, data or models, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    options = resolved(options)
    check_goals(options)
    check_spread(options)
    device = check_device(options.device)
    if not trains(options):
        options = of_existing(options)
    goals, optimizes = goals_of(options), options.mode in ("full", "optimize")
    stem = f"{user_path(options.data_path).stem}-compress"
    with session(options, "compress", kin_of(options, goals), stem) as folder:
        notes: list[str] = []
        redo: list[str] = []

        def reachable(shape: Shape) -> list[Goal]:
            return within_reach(goals, options, shape, []) if optimizes else []

        base = baseline_of(options, folder, device, notes, reachable)
        if optimizes:
            reached = within_reach(goals, options, base.shape, notes)
            spread = settings_of(options, folder)
            folder.write_env(**{CELL_THREADS: spread.threads})
            failed = Workshop(options, folder, base).make(reached, spread)
            redo = to_redo("compress", folder, failed, len(reached), "log.txt", "models", "makes")
            notes += redo
            if options.study:
                study(options, folder, base)
        done = evaluated_run(options, folder, base, notes) if options.mode in ("full", "evaluate") else None
    rows = model_rows(finished(folder.path, base.model.fingerprint(), []), done)
    models: list[RenderableType] = [compressed_table(rows)] if rows else []
    if done is None:
        return Outcome(
            command="compress",
            folder=folder.path,
            figures={"models": rows},
            notes=notes,
            shown=[*models, *redo],
            closing="holds the models",
            status=PARTLY if redo else 0,
        )
    told = done.outcome(folder, folder.results / PAGE, "compress")
    return replace(
        told, figures={"models": rows, **told.figures}, shown=[*models, *told.shown], status=PARTLY if redo else 0
    )


def of_existing(options: CompressOptions) -> CompressOptions:
    """The options of a call that works on an existing run, which it goes on with unasked.

    Raises:
        WeightsmithError: no run named, none there, no baseline in it, or nothing to evaluate.
    """
    why = "--skip-training" if options.skip_training and options.mode == "full" else f"--mode {options.mode}"
    if options.run_name is None:
        runs = existing_runs(options.runs_dir)
        there = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
        raise WeightsmithError(f"{why} works on an existing run: name it with --run-name ({there})")
    folder = user_path(options.runs_dir) / options.run_name
    place = baseline_place(options, folder)
    if not (place / "config.json").is_file():
        raise WeightsmithError(
            f"{why} takes the baseline that is there, and --baseline-name {options.baseline_name} names none: {place} has no "
            f"model; train one with --mode train, or give another --run-name or --baseline-name{near_path(place)}"
        )
    if options.mode == "evaluate" and not any((folder / OPTIMIZED).glob("[!.]*/config.json")):
        raise WeightsmithError(
            f"--mode evaluate compares the models of a run, and {folder / OPTIMIZED} has none: make some with --mode optimize"
        )
    return replace(options, resume=not options.overwrite)


def kin_of(options: CompressOptions, goals: Sequence[Goal]) -> Kin:
    """What a call replaces with `--overwrite`: what it makes, and what depends on that."""
    inside: list[str] = ["cells"]
    checkpoints: list[str] = []
    results = list(_EVALUATION)
    if options.mode in ("full", "optimize"):
        inside += [f"{OPTIMIZED}/{glob.escape(goal.name)}" for goal in goals]
        checkpoints += [glob.escape(goal.name) for goal in goals]
        results += [AGREEMENT, FAITHFULNESS]
    if trains(options):
        inside += [f"{MODELS}/*", f"{OPTIMIZED}/*"]
        checkpoints.append("*")
        results += ["data_split_info.csv", "training_metrics.csv", "figures/training_curve.png"]
    return Kin(
        commands=("compress",),
        called="compress",
        another="another command",
        results=tuple(results),
        inside=tuple(inside),
        checkpoints=tuple(checkpoints),
        worth=(f"{MODELS}/*/config.json", f"{OPTIMIZED}/*/config.json"),
        free=tuple(field.name for field in fields(CompressOptions) if field.name not in _FIXED),
    )
