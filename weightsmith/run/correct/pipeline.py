"""Run stages in order, once each, and tell what happened."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import RenderableType

from weightsmith import __version__, report
from weightsmith.edit import editors
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError, did_you_mean, near_path
from weightsmith.files import read_csv, user_path
from weightsmith.run.correct.page import write_report
from weightsmith.run.correct.stages import STAGES
from weightsmith.run.editing import AUTO, check_layer_flags
from weightsmith.run.folder import RunFolder, new_name, require_run
from weightsmith.run.job import TRAIN_DEFAULTS, Job, check_device, check_network, train_options
from weightsmith.run.options.correct import STAGE_NAMES, RunOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.stored import check_asked, check_stored, check_strangers
from weightsmith.run.tables import numbers
from weightsmith.run.tracking import check_tracking, tracking

_log = logging.getLogger(__name__)


def run(options: RunOptions) -> Outcome:
    """Run one stage or all of them.

    Stages that are finished with the same options are not run again. Results of other options are replaced only with
    `overwrite`; a run that exists is gone on with only with `resume`.

    Raises:
        WeightsmithError: bad options or data, in one sentence.
    """
    check_options(options)
    folder, stages = folder_of(options), stages_of(options)
    fresh = not folder.path.exists()
    try:
        page = _run_stages(folder, options, stages)
    except WeightsmithError:
        if fresh and all(folder.done(stage) is None for stage in STAGES):
            folder.discard()  # options that were refused at once leave nothing behind
        raise
    return _outcome(folder, stages, page)


def folder_of(options: RunOptions) -> RunFolder:
    """The folder of the run. Raises `WeightsmithError` for one that exists unasked, or that is to be and does not."""
    name = require_run(options) if options.stage not in ("full", "data") else new_name(options, stem_of(options))
    folder = RunFolder.named(options, name)
    check_strangers(folder)
    if options.stage == "full":
        check_asked(options, folder)
    check_stored(options, folder, STAGE_NAMES, "run")
    return folder


def stages_of(options: RunOptions) -> list[str]:
    """The stages that are asked for, in their order."""
    return list(STAGES) if options.stage == "full" else [options.stage]


def _run_stages(folder: RunFolder, options: RunOptions, stages: Sequence[str]) -> Path:
    with folder.in_use(), folder.logged():
        job = Job(options, folder)
        folder.recover()
        stored = folder.config_text()
        folder.write_config(options)
        try:
            with tracking(options, folder):
                for stage in stages:
                    _run_stage(job, stage)
        except WeightsmithError:
            # Options that were refused must not become the defaults of the next command.
            folder.restore_config(stored)
            raise
        return write_report(folder, options)


def _run_stage(job: Job, stage: str) -> None:
    options, folder = job.options, job.folder
    for needed in STAGES[stage].needs:
        if folder.done(needed) is None:
            raise WeightsmithError(
                f"the {stage} stage needs what the {needed} stage leaves in {folder.path}: run --stage {needed} first"
            )
    key = fingerprint(options, stage)
    before = folder.done(stage)
    if before == key and not options.overwrite:
        _log.info("%s: done already", stage)
        return
    if before is not None and not options.overwrite:
        raise WeightsmithError(
            f"{folder.path} holds results of the {stage} stage with other options: give --overwrite to replace them, "
            "or another --run-name"
        )
    job.stage = stage
    started = time.monotonic()
    _log.info("%s: started", stage)
    folder.log_event(stage, "start", key=key)
    try:
        # A stage that is redone keeps its old results until the new ones are complete.
        with folder.set_aside(STAGES[stage].results(folder) if options.overwrite else []):
            STAGES[stage].run(job)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        folder.log_event(stage, "interrupted" if interrupted else "failed", why=str(error) or type(error).__name__)
        if before is not None:
            folder.log_event(stage, "done", key=before, restored=True)
        raise
    for later in _behind(stage):
        if folder.done(later) is not None:
            folder.log_event(later, "outdated", by=stage)
            folder.remove(*STAGES[later].results(folder))
            folder.forget_notes(later)
    folder.log_event(stage, "done", key=key, seconds=round(time.monotonic() - started, 2))
    _log.info("%s: done in %.1f s", stage, time.monotonic() - started)


def _behind(stage: str) -> list[str]:
    """The stages that come after one."""
    names = list(STAGES)
    return names[names.index(stage) + 1 :]


def fingerprint(options: RunOptions, stage: str) -> str:
    """SHA-256 of everything asked for that a stage's result depends on, earlier stages included."""
    upto = [earlier for earlier in STAGES if earlier not in _behind(stage)]
    concerned = [name for earlier in upto for name in STAGES[earlier].concerns]
    values = asdict(options)
    text = json.dumps({"version": __version__, **{name: values[name] for name in concerned}}, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def check_options(options: RunOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    if options.stage not in (*STAGES, "full"):
        raise WeightsmithError(f"--stage {options.stage} is no stage: {did_you_mean(options.stage, [*STAGES, 'full'])}")
    known = (AUTO, *editors())
    for method in options.edit_method:
        if method not in known:
            raise WeightsmithError(f"--edit-method {method} is no editor: {did_you_mean(method, known)}")
    if AUTO in options.edit_method and len(options.edit_method) > 1:
        raise WeightsmithError("--edit-method auto stands alone: name the methods, such as `patcher alphaedit`")
    if not options.edit_method or len(set(options.edit_method)) < len(options.edit_method):
        raise WeightsmithError("--edit-method needs one or more different methods, such as `alphaedit head`")
    if AUTO not in options.edit_method:
        check_layer_flags(options.edit_method, edit_layers=options.edit_layers, layers_from=options.layers_from)
    if options.layers_from is not None and not (place := user_path(options.layers_from)).exists():
        raise WeightsmithError(
            f"--layers-from {options.layers_from} is not there: give a run of locate trace or patch{near_path(place)}"
        )
    positive = {
        "--max-edits": options.max_edits,
        "--max-samples": options.max_samples,
        "--num-edit-layers": options.num_edit_layers,
        "--num-ablations": options.num_ablations,
        "--n-views": options.n_views,
        "--head-steps": options.head_steps,
    }
    for flag, value in positive.items():
        if value < 1:
            raise WeightsmithError(f"{flag} must be at least 1, not {value}: give 1 or more")
    if not 0 <= options.seed < 2**32 - 1:  # what the splits of scikit-learn take
        raise WeightsmithError(f"--seed must be a number from 0 to {2**32 - 2}, not {options.seed}: give 42 say")
    if options.held_out_from == "train" and not 0 < options.held_out_ratio < 1:
        raise WeightsmithError(
            f"--held-out-ratio must lie between 0 and 1, not {options.held_out_ratio:g}: give 0.2 to hold out a fifth"
        )
    if options.held_out_from == "none" and options.edit_from in ("train", "val"):
        raise WeightsmithError(
            "--held-out-from none leaves nothing to prove the edit on: give --edit-from PATH with it"
        )
    train_options(options, TRAIN_DEFAULTS)  # says what is wrong with them
    check_device(options.device)
    if options.stage in ("full", "train"):
        check_network(options)
    check_tracking(options)


def stem_of(options: RunOptions) -> str:
    data = Path(user_path(options.data_path)).stem
    return data if AUTO in options.edit_method else f"{data}-{'-'.join(options.edit_method)}"


def _outcome(folder: RunFolder, stages: Sequence[str], page: Path) -> Outcome:
    """What there is to tell of the stages that ran."""
    effects, rows = folder.results / "effects.safetensors", folder.results / "evaluation_report.csv"
    figures: dict[str, object] = {}
    shown: list[RenderableType] = []
    if "locate" in stages and effects.exists():
        traced = Effects.load(effects)
        figures["layers"] = traced.table()
        shown.append(report.layer_bars(traced))
    if "eval" in stages and rows.exists():
        table = read_csv(rows)
        figures["evaluation"] = [numbers(row) for row in table]
        shown.append(report.evaluation_table(table))
    return Outcome(command="run", folder=folder.path, page=page, figures=figures, notes=folder.notes(), shown=shown)
