"""`weightsmith artificial`: data, base, fine-tuning, sweep; or the sweep of a pair that is there."""

from __future__ import annotations

import math
from dataclasses import replace

from weightsmith.data.artificial import tasks
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import user_path
from weightsmith.merge.vectors.operations import MODES, OPERATIONS
from weightsmith.run.artificial import sweep
from weightsmith.run.artificial.data import DATA, RECORD, make_data, read_data
from weightsmith.run.artificial.networks import BASE, FINETUNED, make_base, make_finetuned
from weightsmith.run.folder import RunFolder, existing_runs
from weightsmith.run.job import check_device
from weightsmith.run.options.artificial import ArtificialOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, at_least, distinct, flag, session
from weightsmith.run.spread import check_spread

STAGES = ("data", "base", "finetune", "sweep")
_LEFT: dict[str, tuple[str, ...]] = {
    "data": (DATA, RECORD),
    "base": (BASE, "base_training.csv", "figures/base_training.png"),
    "finetune": (FINETUNED, "finetuned_training.csv", "figures/finetuned_training.png"),
    "sweep": (sweep.CELLS, *sweep.FILES),
}
"""What each stage leaves in the run's folder, or where its tables go."""
_CHECKPOINTS = {"base": ("base.pt",), "finetune": ("finetuned.pt", "finetuned_head.pt")}


def artificial(options: ArtificialOptions) -> Outcome:
    """Run one stage or all of them.

    What is finished with the same options is kept, so a run that was stopped goes on where it was.

    Raises:
        WeightsmithError: bad options, data or models, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    check_options(options)
    device = check_device(options.device)
    if options.stage not in ("full", "data") and options.pretrained is None:
        options = of_existing(options)
    stages = stages_of(options)
    stem = "artificial" if options.pretrained is None else f"{user_path(options.data_path or '').stem}-arithmetic"
    with session(options, "artificial", kin_of(stages), stem) as folder:
        alone = options.pretrained is not None
        found = sweep.swept_pair(options, folder, device) if alone else _run(options, folder, device, stages)
    return sweep.outcome(folder, found)


def _run(options: ArtificialOptions, folder: RunFolder, device: str, stages: tuple[str, ...]) -> sweep.Swept | None:
    if "data" in stages:
        make_data(options, folder)
    first, second = read_data(options, folder)
    folder.write_env(device=device, data={task.name: task.digests() for task in (first, second)}, seed=options.seed)
    if "base" in stages:
        make_base(options, folder, first, device)
    if "finetune" in stages:
        make_finetuned(options, folder, second, device)
    return sweep.swept_tables(options, folder, (first, second), device) if "sweep" in stages else None


def stages_of(options: ArtificialOptions) -> tuple[str, ...]:
    if options.pretrained is not None:
        return ("sweep",)
    return STAGES if options.stage == "full" else (options.stage,)


def kin_of(stages: tuple[str, ...]) -> Kin:
    """What a call replaces with `--overwrite`: what it makes, and what depends on that."""
    behind = STAGES[STAGES.index(stages[0]) :]
    patterns = tuple(pattern for stage in behind for pattern in _LEFT[stage])
    return Kin(
        commands=("artificial",),
        called="artificial",
        another="another command",
        results=patterns,
        inside=patterns,
        checkpoints=tuple(name for stage in behind for name in _CHECKPOINTS.get(stage, ())),
        worth=(RECORD,),
        free=("stage", "operations", "modes", "coefficients"),
    )


def of_existing(options: ArtificialOptions) -> ArtificialOptions:
    """The options of a stage that works on an existing run, which it goes on with unasked."""
    runs = existing_runs(options.runs_dir)
    there = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
    if options.run_name is None:
        raise WeightsmithError(f"--stage {options.stage} works on an existing run: name it with --run-name ({there})")
    if options.run_name not in runs:
        meant = did_you_mean(options.run_name, runs) if runs else there
        raise WeightsmithError(
            f"--run-name {options.run_name} names no run in {options.runs_dir}: {meant}; run --stage data first"
        )
    return replace(options, resume=not options.overwrite)


def check_options(options: ArtificialOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    tasks(options.preset)
    check_spread(options)
    for name, known in (("operations", OPERATIONS), ("modes", MODES)):
        values = getattr(options, name)
        distinct(name, values, " ".join(known[:2]))
        for value in values:
            if value not in known:
                raise WeightsmithError(f"{flag(name)} {value} is unknown: {did_you_mean(value, known)}")
    for value in options.coefficients:
        if not math.isfinite(value):
            raise WeightsmithError(f"--coefficients {value} is no number: give such as `0 0.3 0.6 0.9`")
    distinct("coefficients", options.coefficients, "0 0.3 0.6 0.9")
    at_least(options, {"epochs": 1, "finetune_epochs": 1, "batch_size": 1})
    for name in ("lr", "finetune_lr"):
        rate = getattr(options, name)
        if not (rate > 0 and math.isfinite(rate)):
            raise WeightsmithError(f"{flag(name)} must be positive, not {rate:g}: give 1e-3 say")
    _check_pair(options)


def _check_pair(options: ArtificialOptions) -> None:
    """A pair of one's own is named whole, and its networks are not trained here."""
    pair = {name: getattr(options, name) for name in ("pretrained", "finetuned", "data_path")}
    given = [flag(name) for name, value in pair.items() if value is not None]
    absent = [flag(name) for name, value in pair.items() if value is None]
    if given and absent:
        raise WeightsmithError(f"{given[0]} asks for a pair of your own: give {' and '.join(absent)} as well")
    if options.pretrained_data_path is not None and not given:
        raise WeightsmithError("--pretrained-data-path judges a pair of your own: give --pretrained and --finetuned")
    if given and options.stage not in ("full", "sweep"):
        raise WeightsmithError(f"--stage {options.stage} makes what --pretrained brings: leave one of them out")
    if given and (options.base_data or options.finetune_data or options.base_model):
        raise WeightsmithError(
            "--pretrained names a pair that is there: leave --base-data, --finetune-data and --base-model out"
        )
