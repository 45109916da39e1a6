"""What the correction benchmarks share: edit with each method, collect rows and print them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.split import Split, stratified

sys.path.append(str(Path(__file__).parents[1]))
from shared import keep, trained

__all__ = ["EDITORS", "edit_rows", "keep", "protocols", "show", "trained"]

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
