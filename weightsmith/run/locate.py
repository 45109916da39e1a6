"""`weightsmith locate`: trace, patch, screen or attribute, and write tables, figures and a page."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from weightsmith import report
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path, write_csv, write_json, write_text
from weightsmith.models import Model
from weightsmith.run.findings import Findings
from weightsmith.run.folder import RunFolder, existing_runs, new_name
from weightsmith.run.inputs import trained_model
from weightsmith.run.options import (
    AttributionOptions,
    LocateOptions,
    PatchAttributionOptions,
    PatchOptions,
    TraceOptions,
    to_yaml,
)
from weightsmith.run.screening import attribute_findings, screen_findings
from weightsmith.run.sweeping import swept

_log = logging.getLogger(__name__)

_COMMANDS: dict[type[LocateOptions], tuple[str, Callable[[Any, Model, RunFolder], Findings]]] = {
    TraceOptions: ("trace", swept),
    PatchOptions: ("patch", swept),
    AttributionOptions: ("attribution", screen_findings),
    PatchAttributionOptions: ("astra", attribute_findings),
}
"""Each way to locate by its options: its name, and what finds."""


def locate(options: LocateOptions) -> Path:
    """Run one of the ways to locate, and return the run's folder.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    command, find = _COMMANDS[type(options)]
    _check(options)
    name = new_name(options, f"{user_path(options.data_path).stem}-{command}")
    folder = RunFolder.named(options, name)
    fresh, before = not folder.path.exists(), _measured(folder)
    try:
        with folder.in_use(), folder.logged():
            folder.recover()
            stored = folder.config_text()
            if stored is not None:
                _check_same(options, folder, stored)
            folder.log_event(command, "start")
            redone = _results(folder) if stored is not None and options.overwrite else []
            try:
                with folder.set_aside(redone), _cleared(folder, bool(redone)):
                    folder.write_config(options)
                    model = trained_model(options, folder)
                    found = find(options, model, folder)
                    page = _write(options, command, model, folder, found)
            except BaseException as error:
                if isinstance(error, WeightsmithError):
                    folder.restore_config(stored)  # options that were refused must not become those of the run
                interrupted = isinstance(error, KeyboardInterrupt)
                folder.log_event(
                    command, "interrupted" if interrupted else "failed", why=str(error) or type(error).__name__
                )
                raise
            folder.log_event(command, "done")
    except WeightsmithError as error:
        # What a full disk stopped can be gone on with; options that were refused leave nothing, but a model that was trained.
        refused = error.__cause__ is None or isinstance(error.__cause__, WeightsmithError)
        if fresh and (refused or not any(folder.path.glob("checkpoints/*"))):
            folder.remove(*(path for path in _measured(folder) if path not in before))
            folder.remove(folder.path / "config.yaml")
            if not (folder.path / "model").exists():
                folder.discard()
        raise
    console = Console()
    for shown in found.terminal:
        console.print(shown)
    for sentence in found.summary:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    where, read = escape(str(folder.path)), escape(str(page))
    console.print(f"[bold]{where}[/] holds everything; the page to read is {read}", soft_wrap=True)
    return folder.path


_LEAST = {
    "seed": 0, "max_samples": 1, "batch_memory": 1, "num_ablations": 1, "map_samples": 0, "token_block": 1, "steps": 1,
    "verify": 1, "audit": 1,
}  # fmt: skip
"""The least that an option may be."""

_FREE = (
    "device", "resume", "overwrite", "run_name", "timestamp", "runs_dir", "checkpoint_dir", "log_dir", "results_dir",
    "cache_dir", "config", "batch_memory",
)  # fmt: skip
"""Options that may differ when a run is gone on with: they say where and how, not what."""


def _check(options: LocateOptions) -> None:
    """Everything that can be known to be wrong before any work is done."""
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise WeightsmithError(f"{_flag(name)} must be at least {least}, not {value}")
    if options.seed >= 2**32 - 1:  # what the splits of scikit-learn take, the one after it included
        raise WeightsmithError(f"--seed must be below {2**32 - 1}, not {options.seed}")
    noise, min_gap = getattr(options, "noise", 1.0), getattr(options, "min_gap", None)
    if not 0 < noise < math.inf:
        raise WeightsmithError(f"--noise must be a positive number, not {noise:g}: 3 is usual")
    if min_gap is not None and not 0 <= min_gap < math.inf:
        raise WeightsmithError(f"--min-gap must be a number from 0, not {min_gap:g}")
    if options.resume and options.run_name is None:
        runs = existing_runs(options.runs_dir)
        there = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
        raise WeightsmithError(f"--resume goes on with an existing run: name it with --run-name ({there})")


def _check_same(options: LocateOptions, folder: RunFolder, stored: str) -> None:
    """Refuse an existing run unasked, the folder of another kind of run, and to mix what was measured with other options."""
    if not (options.resume or options.overwrite):
        raise WeightsmithError(
            f"the run {folder.path} exists: give --resume to go on with it, --overwrite to redo it, or another --run-name"
        )
    ours = {name for name, _ in _COMMANDS.values()}
    if any(event.get("stage") not in ours for event in folder.events()):
        raise WeightsmithError(f"{folder.path} holds a run of another command than locate: give another --run-name")
    if options.overwrite or not _measured(folder):
        return
    try:
        theirs = yaml.safe_load(stored)
    except yaml.YAMLError:
        theirs = None
    mine = yaml.safe_load(to_yaml(options))
    if not isinstance(theirs, dict) or set(theirs) != set(mine):
        raise WeightsmithError(
            f"{folder.path} holds what another way to locate measured: give --overwrite to replace it, or another --run-name"
        )
    other = [name for name in mine if name not in _FREE and theirs[name] != mine[name]]
    if other:
        asked = ", ".join(_said(name, theirs[name]) for name in other)
        raise WeightsmithError(
            f"{folder.path} was measured with other options ({asked}): give the same to go on, --overwrite to measure anew, "
            "or another --run-name"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _said(name: str, value: Any) -> str:
    """An option as one would type it."""
    if isinstance(value, bool) or value in (None, []):
        return _flag(name) if value is True else _flag(f"no_{name}") if value is False else f"no {_flag(name)}"
    return f"{_flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


@contextmanager
def _cleared(folder: RunFolder, redone: bool) -> Iterator[None]:
    """When a run that is redone fails, none of its new files may stay among the old ones, which come back."""
    try:
        yield
    except BaseException:
        if redone:
            folder.remove(*_results(folder))
        raise


def _results(folder: RunFolder) -> list[Path]:
    """What a run of any of the commands leaves, a model that it trained first included; what else lies there stays."""
    made = ("config.yaml", "env.json", "model", "data_split.json", "data_split_indices.npz")
    there = [path for name in made if (path := folder.path / name).exists()]
    return [*there, *folder.checkpoints.glob("checkpoint.pt"), *_measured(folder)]


def _measured(folder: RunFolder) -> list[Path]:
    """What a run measured, finished or not."""
    patterns = ("*.safetensors", "*.csv", "figures", "summary.json", "report.html")
    there = [path for pattern in patterns for path in folder.results.glob(pattern)]
    return [*there, *folder.checkpoints.glob("sweep*")]


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
        figures=list(found.figures.values()),
        tables=[(title, found.tables[name], name) for title, name in found.shown],
        refused=found.refused,
        notes=found.notes,
    )
    page = out / "report.html"
    write_text(page, report.build_locate(inputs))
    return page
