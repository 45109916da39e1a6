"""`weightsmith ablate`: one choice of an editor varied, and everything else held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from weightsmith import report
from weightsmith.edit import editors
from weightsmith.edit.lora_native import LoRAOptions
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.report.ablation_page import AblationInputs, build_ablation
from weightsmith.run.ablate.ablation import Ablation
from weightsmith.run.ablate.lora import LoraAblation
from weightsmith.run.ablate.replay import ReplayAblation
from weightsmith.run.ablate.trials import Trial, run_trials, titled
from weightsmith.run.compare.benches import ImageBench
from weightsmith.run.compare.benching import batch_of
from weightsmith.run.compare.draws import PLAN, REQUESTS
from weightsmith.run.compare.planned import check_planned, planned
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.ablate import AblateLoraOptions, AblateOptions, AblateReplayOptions
from weightsmith.run.outcome import PARTLY, Outcome
from weightsmith.run.session import Kin, at_least, distinct, flag, session
from weightsmith.run.spread import Measure, check_folder, check_spread, settings_of, to_redo

PAGE = "report.html"

KIN = Kin(
    commands=("ablate lora", "ablate replay"),
    called="ablate",
    another="another ablation",
    results=(PLAN, REQUESTS, "*_ablation.csv", "forgetting_curve.csv", "figures", "summary.json", PAGE),
    inside=("cells",),
    worth=("cells/*.json",),
)

WAYS: dict[type[AblateOptions], tuple[str, type[Ablation]]] = {
    AblateLoraOptions: ("lora", LoraAblation),
    AblateReplayOptions: ("replay", ReplayAblation),
}


def ablate(options: AblateOptions) -> Outcome:
    """Measure every setting on every draw of requests.

    Each trial is kept when it is measured, so an ablation that was stopped goes on where it was; one that cannot be
    measured says why, and the others are measured all the same.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    check_options(options)
    way, kind = WAYS[type(options)]
    command = f"ablate {way}"
    with session(options, command, KIN, f"{user_path(options.data_path).stem}-ablate-{way}") as folder:
        notes: list[str] = []
        bench = batch_of(options, folder, notes)
        spread = settings_of(options, folder)
        plan = planned(options, bench, options.edit_method, (options.max_edits,), options.seeds, notes, folder, spread)
        ablation = kind(options, bench, plan, folder.path / "cells")
        make = partial(elsewhere, options, folder)
        trials = run_trials(ablation, ablation.settings(), ablation.place, make, spread)
        found = ablation.ablated(trials)
        for name, rows in found.tables.items():
            write_csv(folder.results / name, rows)
        for name, figure in found.figures.items():
            report.save(figure, folder.figures / f"{name}.png")
        summary = [*_summary(ablation, trials), *found.summary]
        write_json(folder.results / "summary.json", {"command": command, "summary": summary, "notes": notes})
        inputs = AblationInputs(
            title=f"{folder.path.name}: an ablation of {ablation.method}",
            way=way,
            summary=summary,
            notes=notes,
            tables=found.tables,
            failed=[(titled(trial.setting), trial.error) for trial in trials if trial.error],
            config=asdict(options),
            env=folder.env(),
        )
        write_text(folder.results / PAGE, build_ablation(inputs))
    first = next(iter(found.tables))
    failed = [(titled(trial.setting), trial.error) for trial in trials if trial.error]
    redo = to_redo(command, folder, failed, len(trials), first, "trials")
    return Outcome(
        command=command,
        folder=folder.path,
        page=folder.results / PAGE,
        figures={"settings": found.tables[first]},
        summary=summary,
        notes=[*notes, *redo],
        shown=[found.shown, *summary, *notes, *redo],
        status=PARTLY if failed else 0,
    )


def elsewhere(options: AblateOptions, folder: RunFolder) -> Measure:
    """What measures trials in a worker. Raises as `batch_of`, and where the worker sees other data than the command."""
    check_folder(folder.path)
    bench = batch_of(options, folder, [])
    _, kind = WAYS[type(options)]
    return kind(options, bench, check_planned(bench, folder), folder.path / "cells").measure


def check_options(options: AblateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    if len(options.edit_method) != 1:
        raise WeightsmithError(
            f"--edit-method {' '.join(options.edit_method)}".rstrip()
            + ": an ablation varies one editor: give one, `alphaedit` say"
        )
    (method,) = options.edit_method
    if method not in editors():
        raise WeightsmithError(f"--edit-method {method} is no editor: {did_you_mean(method, editors())}")
    at_least(options, {"n_views": 1, "max_edits": 1, "batch_size": 1})
    check_spread(options)
    _each(options, {"seeds": (0, "0 1 2")})
    if any(seed >= 2**32 for seed in options.seeds):
        raise WeightsmithError(
            f"--seeds must be from 0 to {2**32 - 1}, not {max(options.seeds)}: give small numbers, `0 1 2` say"
        )
    if isinstance(options, AblateLoraOptions):
        _each(options, {"ranks": (1, "1 4 16"), "fit_steps": (0, "0 5 20")})
        LoRAOptions(alpha=options.lora_alpha)  # says so where it is no alpha
    if isinstance(options, AblateReplayOptions):
        _each(options, {"buffers": (1, "20 500"), "strategies": (None, "random recent"), "rates": (None, "0.5 2")})
        for rate in options.rates:
            if not 0 < rate < math.inf:
                raise WeightsmithError(
                    f"--rates must be positive numbers, not {rate:g}: without replay it is measured in any "
                    "case, give `0.5 2` say"
                )
        if options.batch_size >= options.max_edits:
            raise WeightsmithError(
                f"--batch-size {options.batch_size} must be below --max-edits {options.max_edits}: a single batch has "
                "nothing to replay, give fewer a batch"
            )


def _each(options: AblateOptions, given: dict[str, tuple[int | None, str]]) -> None:
    """Raise `WeightsmithError` unless an option has one or more different values, none below its least."""
    for name, (least, such_as) in given.items():
        values = getattr(options, name)
        distinct(name, values, such_as)
        if least is not None and min(values) < least:
            raise WeightsmithError(f"{flag(name)} must be at least {least}, not {min(values)}: give {least} or more")


def _summary(ablation: Ablation, trials: Sequence[Trial]) -> list[str]:
    options, seeds = ablation.options, ablation.options.seeds
    kinds = {"text": "facts of a language model", "images": "errors of an image classifier"}
    told = [
        f"{options.max_edits} {kinds[ablation.plan.reads]} edited with {ablation.method}, on {len(seeds)} "
        f"draw{'s' * (len(seeds) > 1)} of them; every setting on the same draws, each on the unedited model.",
    ]
    if isinstance(ablation.bench, ImageBench):
        told.append(
            "Requests are errors of the validation part, the train part is preserved, and locality is measured on the "
            "held-out part, which nothing but the evaluation reads."
        )
    drawn = {frozenset(content for _, content in ablation.plan.draws[seed]) for seed in seeds}
    if len(drawn) < len(seeds):
        told.append(
            "There are no more requests than are edited, so draws are the same requests in another order, and intervals over "
            "draws say nothing of other requests."
        )
    failed = sum(bool(trial.error) for trial in trials)
    return told + ([f"{failed} of {len(trials)} trials failed."] if failed else [])
