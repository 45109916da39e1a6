"""`weightsmith locate`: trace, patch, screen or attribute, and write tables, figures and a page."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsmith import report
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.models import Model
from weightsmith.run.findings import Findings
from weightsmith.run.folder import RunFolder
from weightsmith.run.locate.inputs import trained_model
from weightsmith.run.locate.places import check_places
from weightsmith.run.locate.screening import attribute_findings, screen_findings
from weightsmith.run.locate.sweeping import swept
from weightsmith.run.options.locate import (
    AttributionOptions,
    LocateOptions,
    PatchAttributionOptions,
    PatchOptions,
    SweepOptions,
    TraceOptions,
)
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, at_least, session

_log = logging.getLogger(__name__)

COMMANDS: dict[type[LocateOptions], tuple[str, Callable[[Any, Model, RunFolder], Findings]]] = {
    TraceOptions: ("trace", swept),
    PatchOptions: ("patch", swept),
    AttributionOptions: ("attribution", screen_findings),
    PatchAttributionOptions: ("astra", attribute_findings),
}
"""Each way to locate by its options: its name, and what finds."""


def locate(options: LocateOptions) -> Outcome:
    """Run one of the ways to locate.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    command, find = COMMANDS[type(options)]
    check_options(options)
    with session(options, command, KIN, f"{user_path(options.data_path).stem}-{command}") as folder:
        model = trained_model(options, folder)
        found = find(options, model, folder)
        page = _write(options, command, model, folder, found)
    return Outcome(
        command=f"locate {command}",
        folder=folder.path,
        page=page,
        figures=found.headline(),
        summary=found.summary,
        notes=found.notes,
        shown=[*found.terminal, *found.summary],
    )


_LEAST = {
    "max_samples": 1, "batch_memory": 1, "num_ablations": 1, "map_samples": 0, "token_block": 1, "steps": 1,
    "verify": 1, "audit": 1,
}  # fmt: skip
"""The least that an option may be."""

KIN = Kin(
    commands=tuple(name for name, _ in COMMANDS.values()),
    called="locate",
    another="another way to locate",
    results=("*.safetensors", "*.csv", "figures", "summary.json", "report.html"),
    checkpoints=("sweep*",),
    free=("batch_memory",),
)


def check_options(options: LocateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    at_least(options, _LEAST)
    if isinstance(options, SweepOptions):
        check_places(options)
    noise, min_gap = getattr(options, "noise", 1.0), getattr(options, "min_gap", None)
    if not 0 < noise < math.inf:
        raise WeightsmithError(f"--noise must be a positive number, not {noise:g}: 3 is usual, give that")
    if min_gap is not None and not 0 <= min_gap < math.inf:
        raise WeightsmithError(f"--min-gap must be a number from 0, not {min_gap:g}: give 0 to refuse none")


def _write(options: LocateOptions, command: str, model: Model, folder: RunFolder, found: Findings) -> Path:
    out = folder.results
    for stem, effects in found.effects.items():
        effects.save(out / f"{stem}.safetensors")
    for name, rows in found.tables.items():
        if rows:
            write_csv(out / name, rows, list(dict.fromkeys(column for row in rows for column in row)))
    for stem, (_, figure) in found.figures.items():
        report.save(figure, folder.figures / f"{stem}.png")
    write_csv(out / "refused.csv", [{"sample": name, "why": why} for name, why in found.refused], ("sample", "why"))
    folder.write_env(device=str(model.device), weights=weights_hash(model), seed=options.seed)
    write_json(out / "summary.json", {"command": command, "summary": found.summary, "notes": found.notes})
    inputs = report.LocateInputs(
        title=f"{folder.path.name}: where the decision is made",
        command=command,
        summary=found.summary,
        config=asdict(options),
        env=json.loads(json.dumps(folder.env())),
        figures=found.shown_figures(),
        tables=[(title, found.tables[name], name) for title, name in found.shown],
        refused=found.refused,
        notes=found.notes,
    )
    page = out / "report.html"
    write_text(page, report.build_locate(inputs))
    return page
