"""What the correction benchmarks share: train once a seed, edit with each method, collect rows, print and keep them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.split import Split, stratified
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.models import create, load, presets, save
from weightsmith.run.folder import environment
from weightsmith.run.job import save_indices
from weightsmith.train import TrainOptions, fit

SHOWN = ("efficacy", "generalisation", "locality", "repaired", "net_accuracy_change")
HELD_BACK: dict[str, Any] = {"blocks": (5,), "steps": 400, "preserved_batch": 256, "margin": 0.02}
"""Of the baselines that have to be beaten; their steps and weights were chosen under protocol V."""

EDITORS: dict[str, Callable[[bool, str], ws.edit.Editor]] = {
    "patcher": lambda site, view: ws.edit.Patcher(new_site=site, view=view),
    "patcher, memory only": lambda site, view: ws.edit.Patcher(budget=0.0),
    "alphaedit": lambda site, view: ws.edit.AlphaEdit(),
    "memit": lambda site, view: ws.edit.MEMIT(),
    "emmet": lambda site, view: ws.edit.EMMET(),
    "rome": lambda site, view: ws.edit.ROME(),
    "head": lambda site, view: ws.edit.HeadEdit(),
    "head, closed form": lambda site, view: ws.edit.HeadEdit(closed_form=True),
    "finetune": lambda site, view: ws.edit.FineTune(),
    "finetune + KL": lambda site, view: ws.edit.FineTune(lr=3e-4, steps=200, kl=10.0),
    "finetune + KL, last block": lambda site, view: ws.edit.FineTune(lr=1e-2, kl=10.0, **HELD_BACK),
    "lora + KL, last block": lambda site, view: ws.edit.LoRA(lr=1e-2, kl=3.0, **HELD_BACK),
}
"""By name: an editor, told whether the corrections come from a new site, and which views an image of the data has."""


def trained(preset: str, split: Split, seed: int, work: Path, **recipe: Any) -> tuple[ws.Model, float]:
    """The preset's model for a seed, from `work` if it was trained before, and the seconds that training took."""
    folder = work / f"{preset}-{seed}"
    clock = folder / "seconds.json"
    folder.mkdir(parents=True, exist_ok=True)
    save_indices(folder, split.parts())  # so that a command that is given the model knows what is held out
    write_json(folder / "data_split.json", split.manifest())
    if clock.exists():
        return load(folder / "model"), json.loads(clock.read_text())
    model = create(preset, split.train.class_names, seed, split.train.channels)
    started = time.perf_counter()
    options = TrainOptions(seed=seed, **presets()[preset]["training"] | recipe)
    fit(model, split.train, split.val, options, folder / "checkpoint.pt", resume=True)
    seconds = time.perf_counter() - started
    save(model, folder / "model")
    write_json(clock, seconds)
    return model, seconds


def protocols(split: Split, test: ws.data.ImageSet, seed: int) -> dict[str, tuple[ws.data.ImageSet, ws.data.ImageSet]]:
    """Protocol → where corrections come from, and what is held out (V, S and P of the scripts)."""
    rest, stream = stratified(test, 0.5, seed, "--stream-ratio")
    val_rest, val_stream = stratified(split.val, 0.5, seed, "--stream-ratio")
    return {
        "V": (val_stream, val_rest.seal()),
        "S": (stream, rest.seal()),
        "P": (split.val, split.held_out),
    }


def edit_rows(
    model: ws.Model,
    requests: Sequence[ws.ImageRequest],
    preserve: ws.data.ImageSet,
    held_out: ws.data.ImageSet,
    views: str,
    work: Path,
    new_site: bool = False,
    editors: Sequence[str] = tuple(EDITORS),
    **columns: object,
) -> list[dict[str, object]]:
    """One row an editor: the headline measures with their intervals, and the seconds of the solve."""
    rows: list[dict[str, object]] = []
    before = None
    for name in editors:
        started = time.perf_counter()
        delta = EDITORS[name](new_site, views).solve(model, requests, preserve, work / "cache")
        seconds = time.perf_counter() - started
        report = ws.evaluate.editing(model, requests, held_out, delta, views=views, before=before)
        before = report.before
        row = {**columns, "method": name, "edits": len(requests), "seconds": round(seconds, 2)}
        row["accuracy_before"] = round(report.scores_before.accuracy.value, 5)
        row["accuracy_after"] = round(report.scores_after.accuracy.value, 5)
        for measure in SHOWN:
            interval = getattr(report, measure)
            row |= {measure: round(interval.value, 5), f"{measure}_low": round(interval.low, 5)}
            row[f"{measure}_high"] = round(interval.high, 5)
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, object]], title: str) -> None:
    """A table of means over seeds, with the value of each seed behind it."""
    table = Table(title=title)
    for column in ("protocol", "method", *SHOWN):
        table.add_column(column.replace("_", " "), justify="left" if column in ("protocol", "method") else "right")
    groups = dict.fromkeys((row["protocol"], row["method"]) for row in rows)
    for protocol, method in groups:
        chosen = [row for row in rows if (row["protocol"], row["method"]) == (protocol, method)]
        cells = []
        for measure in SHOWN:
            values = [100 * float(row[measure]) for row in chosen]
            sign = "+" if measure == "net_accuracy_change" else ""
            cells.append(f"{mean(values):{sign}.1f} ({', '.join(f'{v:{sign}.1f}' for v in values)})")
        table.add_row(str(protocol), str(method), *cells)
    Console(width=150).print(table)


def keep(rows: Sequence[dict[str, object]], folder: Path, name: str) -> None:
    """Write the rows as CSV and the machine beside them; rows of an earlier run that this one did not measure stay."""
    path = folder / f"{name}.csv"
    measured = {tuple(str(row[key]) for key in ("protocol", "seed", "method")) for row in rows}
    old = list(read_csv(path)) if path.exists() else []
    kept = [row for row in old if tuple(row[key] for key in ("protocol", "seed", "method")) not in measured]
    write_csv(path, [*kept, *rows])
    write_json(folder / "machine.json", environment())
