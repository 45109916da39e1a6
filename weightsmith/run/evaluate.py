"""`weightsmith evaluate`: trained image classifiers side by side, on images that none of them has learned from."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from weightsmith import report
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import Recommendation
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.measure import Cost
from weightsmith.measure.latency import LEAST_ROUNDS
from weightsmith.models import Model
from weightsmith.report.evaluation import evaluation_figure
from weightsmith.report.evaluation_page import EvaluationInputs, build_evaluation, evaluated_table
from weightsmith.run.cells import stored
from weightsmith.run.contenders import contenders, held_out_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.measured import BATCH_SIZES, CENTRE, Measured, answers, timed
from weightsmith.run.options import EvaluateOptions
from weightsmith.run.session import Kin, at_least, distinct, session

_log = logging.getLogger(__name__)

FORMAT = "weightsmith-evaluation-1"
FIGURE, METRICS, TABLE, PAGE = (
    "evaluation_results.png", "evaluation_metrics.json", "evaluation_metrics.csv", "report.html",
)  # fmt: skip

KIN = Kin(
    commands=("evaluate",),
    called="evaluate",
    another="another command",
    results=(FIGURE, METRICS, TABLE, PAGE),
    inside=("cells",),
    worth=("cells/*",),
    free=("output_dir", "tolerance", "batch_size"),
)


def evaluate(options: EvaluateOptions) -> Path:
    """Measure every classifier on the same held-out images, and return the run's folder.

    What a model says of the images is kept when it is known, and so are the times, so an evaluation that was stopped goes
    on where it was.

    Raises:
        WeightsmithError: bad options, models or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    options = _placed(options)
    _check(options)
    with session(options, "evaluate", KIN, f"{user_path(options.data_path).stem}-evaluate") as folder:
        notes: list[str] = []
        models, baseline = contenders(options, notes)
        models, images = held_out_of(options, models, notes)
        if baseline not in [one.name for one in models]:
            if options.baseline is not None:
                raise WeightsmithError(
                    f"--baseline {options.baseline} has other classes than --data-path {options.data_path}: give another"
                )
            baseline = models[0].name
        by_name = {one.name: one.model for one in models}
        _tell_twins(by_name, notes)
        for note in notes:
            _log.warning("%s", note)
        device = str(next(iter(by_name.values())).device)
        folder.write_env(device=device, models={name: model.fingerprint() for name, model in by_name.items()})
        place = folder.path / "cells"
        predictions = answers(by_name, images, options.batch_size, place)
        costs = {name: Cost.of(model) for name, model in by_name.items()}
        times = timed(by_name, baseline, options.rounds, options.seed, place)
        found = Measured(predictions, costs, times, baseline)
        chosen = found.recommendations(options.tolerance)
        paths = {one.name: one.path for one in models}
        told = _told(options, found, notes, device, len(images))
        entries = {
            "format": FORMAT,
            "command": "evaluate",
            "data": {"path": options.data_path, "part": images.part, "images": len(images), "sha256": images.digest()},
            "device": device,
            "threads": torch.get_num_threads(),
            "baseline": baseline,
            "tolerance_points": options.tolerance,
            "models": [{"name": name, "path": paths[name], **found.entry(name, images.class_names)} for name in paths],
            "latency_control": found.control(),
            "pareto_front": list(found.front()),
            "recommendations": [asdict(one) for one in chosen],
            "summary": told,
            "notes": notes,
        }
        page = _write(options, found, chosen, entries, images.class_names, folder)
    console = Console()
    console.print(evaluated_table(found.rows()))
    for one in chosen:
        console.print(str(one), soft_wrap=True, highlight=False, markup=False)
    where, read = escape(str(folder.path)), escape(str(page))
    console.print(f"[bold]{where}[/] holds everything; the page to read is {read}", soft_wrap=True)
    return folder.path


def _placed(options: EvaluateOptions) -> EvaluateOptions:
    """`--output-dir` as the folder of the run."""
    if options.output_dir is None:
        return options
    place = user_path(options.output_dir).absolute()
    if options.run_name not in (None, place.name):
        raise WeightsmithError(
            f"--output-dir {options.output_dir} is the run's folder itself: leave --run-name {options.run_name} out"
        )
    if place.is_dir() and any(place.iterdir()) and not (place / "config.yaml").exists():
        raise WeightsmithError(
            f"--output-dir {options.output_dir} holds other files: give an empty folder, or one that is not there yet"
        )
    return replace(options, runs_dir=str(place.parent), run_name=place.name, output_dir=None)


def _check(options: EvaluateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    at_least(options, {"batch_size": 1, "rounds": LEAST_ROUNDS, "tolerance": 0})
    if options.tolerance != options.tolerance:
        raise WeightsmithError("--tolerance must be a number of percentage points, 1 say")
    if options.model_paths:
        distinct("model_paths", options.model_paths, "runs/one runs/two")
    elif options.auto_find is None and options.baseline is None:
        raise WeightsmithError("--model-paths needs one or more trained classifiers, or --auto-find a folder of some")


def _tell_twins(models: dict[str, Model], notes: list[str]) -> None:
    seen: dict[str, str] = {}
    for name, model in models.items():
        twin = seen.setdefault(model.fingerprint(), name)
        if twin != name:
            notes.append(f"{twin} and {name} are the same network with the same weights: what differs is noise.")


def _told(options: EvaluateOptions, found: Measured, notes: list[str], device: str, images: int) -> list[str]:
    """What was measured, in sentences."""
    at, threads = found.times[found.baseline][CENTRE], torch.get_num_threads()
    control = found.times[found.CONTROL][CENTRE].against(at)
    counted, threaded = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((len(found.costs), "model"), (threads, "thread")))
    told = [
        f"{counted} on the same {images} held-out images of {options.data_path}; differences are to {found.baseline}, image "
        "by image.",
        f"Times are of forward passes on {device} with {threaded}, median over {at.median.n} rounds, in each of which every "
        "model runs once, in random order; reading and scaling images is not counted.",
        f"The baseline timed a second time in every round took {control.value:.3f} times ({control.low:.3f} to "
        f"{control.high:.3f}) its own time at {CENTRE} images: smaller differences are noise.",
    ]
    if not found.scores[found.baseline].top5.n:
        notes.append("With five classes or fewer top-5 accuracy says nothing and is left out.")
    if any(times[size].median.n < options.rounds for times in found.times.values() for size in BATCH_SIZES):
        notes.append(f"Fewer than {options.rounds} rounds were timed at some batch sizes, for passes are slow.")
    return told


def _write(
    options: EvaluateOptions,
    found: Measured,
    chosen: tuple[Recommendation, ...],
    entries: dict[str, object],
    class_names: tuple[str, ...],
    folder: RunFolder,
) -> Path:
    out = folder.results
    rows = found.rows()
    write_json(out / METRICS, stored(entries))
    write_csv(out / TABLE, rows)
    figure = evaluation_figure(rows, found.by_class(class_names), found.baseline)
    report.save(figure, out / FIGURE)
    summary, notes = entries["summary"], entries["notes"]
    assert isinstance(summary, list)
    assert isinstance(notes, list)
    inputs = EvaluationInputs(
        title=f"{folder.path.name}: classifiers side by side",
        recommendations=[str(one) for one in chosen],
        summary=summary,
        notes=notes,
        figure=figure,
        rows=rows,
        by_class=found.by_class(class_names),
        config=asdict(options),
        env=folder.env(),
    )
    write_text(out / PAGE, build_evaluation(inputs))
    return out / PAGE
