"""What the correction benchmarks share: train once a seed, edit with each method, collect rows, print and keep them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.split import Split
from weightsmith.files import write_csv, write_json
from weightsmith.models import create, load, presets, save
from weightsmith.run.folder import environment
from weightsmith.train import TrainOptions, fit

SHOWN = ("efficacy", "generalisation", "locality", "repaired", "net_accuracy_change")
EDITORS: dict[str, Callable[[], ws.edit.Editor]] = {
    "alphaedit": lambda: ws.edit.AlphaEdit(),
    "alphaedit, projector": lambda: ws.edit.AlphaEdit(null_fraction=0.5, null_floor=None),
    "head": lambda: ws.edit.HeadEdit(),
    "head, closed form": lambda: ws.edit.HeadEdit(closed_form=True),
    "finetune": lambda: ws.edit.FineTune(),
}


def trained(preset: str, split: Split, seed: int, work: Path) -> tuple[ws.Model, float]:
    """The preset's model for a seed, from `work` if it was trained before, and the seconds that training took."""
    folder = work / f"{preset}-{seed}"
    clock = folder / "seconds.json"
    if clock.exists():
        return load(folder / "model"), json.loads(clock.read_text())
    model = create(preset, split.train.class_names, seed, split.train.channels)
    started = time.perf_counter()
    recipe = TrainOptions(seed=seed, **presets()[preset]["training"])
    fit(model, split.train, split.val, recipe, folder / "checkpoint.pt", resume=True)
    seconds = time.perf_counter() - started
    save(model, folder / "model")
    write_json(clock, seconds)
    return model, seconds


def edit_rows(
    model: ws.Model,
    requests: Sequence[ws.ImageRequest],
    preserve: ws.data.ImageSet,
    held_out: ws.data.ImageSet,
    views: str,
    work: Path,
    **columns: object,
) -> list[dict[str, object]]:
    """One row an editor: the headline measures with their intervals, and the seconds of the solve."""
    rows: list[dict[str, object]] = []
    for name, make in EDITORS.items():
        started = time.perf_counter()
        delta = make().solve(model, requests, preserve, work / "cache")
        seconds = time.perf_counter() - started
        report = ws.evaluate.editing(model, requests, held_out, delta, views=views)
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
    """Write the rows as CSV and the machine beside them."""
    write_csv(folder / f"{name}.csv", rows)
    write_json(folder / "machine.json", environment())
