"""Classifiers measured side by side in a run's folder: what `weightsmith evaluate` does, and every command that ends in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from weightsmith import report
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import Recommendation
from weightsmith.files import write_csv, write_json, write_text
from weightsmith.measure import Cost
from weightsmith.models import Model
from weightsmith.report.evaluation import evaluation_figure
from weightsmith.report.evaluation_page import CLASSES, EvaluationInputs, Section, build_evaluation, evaluated_table
from weightsmith.run.cells import stored
from weightsmith.run.evaluate.contenders import contenders, held_out_of
from weightsmith.run.evaluate.measured import BATCH_SIZES, CENTRE, Measured, answers, timed
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.outcome import Outcome

_log = logging.getLogger(__name__)

FORMAT = "weightsmith-evaluation-1"
FIGURE, METRICS, TABLE, PAGE = (
    "evaluation_results.png", "evaluation_metrics.json", "evaluation_metrics.csv", "report.html",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation came to.

    Attributes:
        found: everything that was measured; chosen: the recommendations.
        paths: name → path of each model, as it was given.
        class_names: one a class.
        entries: of `evaluation_metrics.json`.
        summary, notes: sentences for people.
    """

    found: Measured
    chosen: tuple[Recommendation, ...]
    paths: Mapping[str, str]
    class_names: tuple[str, ...]
    entries: Mapping[str, object]
    summary: Sequence[str]
    notes: Sequence[str]

    def write(self, folder: RunFolder, title: str, config: Mapping[str, Any], section: Section | None = None) -> Path:
        """Write figure, tables and page, and return the page's path.

        Args:
            section: what a command has to say besides.
        """
        out, rows = folder.results, self.found.rows()
        by_class = self.found.by_class(self.class_names)
        write_json(out / METRICS, stored(dict(self.entries)))
        write_csv(out / TABLE, rows)
        write_csv(out / CLASSES, self.found.class_rows(self.class_names))
        report.save(evaluation_figure(rows, by_class, self.found.baseline), out / FIGURE)
        inputs = EvaluationInputs(
            title=title,
            recommendations=[str(one) for one in self.chosen],
            summary=self.summary,
            notes=self.notes,
            rows=rows,
            by_class=by_class,
            config=config,
            env=folder.env(),
            section=section,
            bins=self.found.bins,
            chosen=[(one.purpose, one.model) for one in self.chosen],
            confusions={name: scores.confusion for name, scores in self.found.scores.items()},
            class_names=self.class_names,
        )
        write_text(out / PAGE, build_evaluation(inputs))
        return out / PAGE

    def outcome(self, folder: RunFolder, page: Path, command: str) -> Outcome:
        """What there is to tell of it."""
        return Outcome(
            command=command,
            folder=folder.path,
            page=page,
            figures={"classifiers": self.found.rows(), "recommendations": [asdict(one) for one in self.chosen]},
            summary=self.summary,
            notes=self.notes,
            shown=[evaluated_table(self.found.rows()), *map(str, self.chosen)],
        )


def evaluated(options: EvaluateOptions, folder: RunFolder, notes: list[str], command: str = "evaluate") -> Evaluated:
    """Measure every classifier that the options name on the same held-out images; what is known already is not measured again.

    Args:
        notes: what a reader must know so far; more is added.
        command: which command asks, for the files.

    Raises:
        WeightsmithError: bad models or data, in one sentence.
    """
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
        "command": command,
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
    return Evaluated(found, chosen, paths, images.class_names, entries, told, notes)


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
