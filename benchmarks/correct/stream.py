"""Errors of a small CIFAR-10 ViT that arrive ten at a time, with every editor, with and without replay.

    python benchmarks/correct/stream.py --data cifar10

At each milestone: efficacy over all corrections so far, how many of the first batch still hold, and what became of held-out
images: which stay as they were (locality), and the change of accuracy. Protocols as in cifar.py: V chooses, S and P report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
from cifar import DEFAULT
from common import protocols, trained
from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.files import read_csv, write_csv, write_json
from weightsmith.models import load
from weightsmith.run.folder import environment
from weightsmith.stream import ReplayOptions, Stream

STREAMS: dict[str, tuple[Callable[[], ws.edit.Editor], ReplayOptions]] = {
    "patcher": (lambda: ws.edit.Patcher(), ReplayOptions()),
    "patcher, memory only": (lambda: ws.edit.Patcher(budget=0.0), ReplayOptions()),
    "patcher, memory only, no replay": (lambda: ws.edit.Patcher(budget=0.0), ReplayOptions(kind="none")),
    "alphaedit, keys": (lambda: ws.edit.AlphaEdit(), ReplayOptions(kind="keys")),
    "alphaedit, requests": (lambda: ws.edit.AlphaEdit(), ReplayOptions(kind="requests")),
    "alphaedit, no replay": (lambda: ws.edit.AlphaEdit(), ReplayOptions(kind="none")),
    "ftm": (lambda: ws.edit.FTM(), ReplayOptions()),
    "finetune": (lambda: ws.edit.FineTune(), ReplayOptions()),
    "finetune, no replay": (lambda: ws.edit.FineTune(), ReplayOptions(kind="none")),
}
"""By name: an editor and what is replayed."""

SHOWN = ("efficacy", "first_batch", "locality", "net_accuracy_change")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT)
    parser.add_argument("--epochs", type=int, default=6, help="of the model that is trained where it is not there yet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--protocol", choices=["V", "S", "P"], default="S")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--milestones", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--preserve", type=int, default=2000)
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-cifar"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    source = ws.data.open_data(str(given.data))
    split = source.split(held_out="test", val_ratio=0.1, seed=0)
    model, _ = trained("cifar", split, 0, given.work, epochs=given.epochs)
    unedited = load(given.work / "cifar-0" / "model")
    chosen = np.random.default_rng(0).permutation(len(split.train))[: given.preserve]
    preserve = split.train.subset(np.sort(chosen))
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        corrections, held_out = protocols(split, source.part("test"), seed)[given.protocol]
        errors = ws.misclassified(model, corrections, limit=given.edits, seed=seed)
        before = None
        for name in given.streams:
            made, replay = STREAMS[name]
            stream = Stream(model, made(), preserve, replay=replay, cache_dir=given.work / "cache")
            spent, batches = 0.0, 0
            for first in range(0, len(errors), given.batch):
                started = time.process_time()
                stream.add(errors[first : first + given.batch])
                spent, batches, done = spent + time.process_time() - started, batches + 1, first + given.batch
                if done not in given.milestones:
                    continue
                delta = stream.delta()
                report = ws.evaluate.editing(unedited, errors[:done], held_out, delta, views="light", before=before)
                before = report.before
                first_ones = corrections_of(model, errors[: given.batch], Contexts()).answers(model)
                row: dict[str, object] = {"protocol": given.protocol, "seed": seed, "stream": name, "edits": done}
                row |= {"efficacy": report.efficacy.value, "first_batch": mean(one["success"] for one in first_ones)}
                for measure in SHOWN[2:]:
                    interval = getattr(report, measure)
                    row |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
                row |= {"update_norm": delta.norm(), "cpu_seconds_a_batch": spent / batches}
                rows.append({key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()})
                print(rows[-1], flush=True)
                spent, batches = 0.0, 0
            stream.close()
            keep(rows, given.out / "cifar_stream.csv")
    write_json(given.out / "machine.json", environment())
    show(rows)


def keep(rows: list[dict[str, object]], path: Path) -> None:
    """Write the rows; those of an earlier run that this one did not measure stay."""
    measured = {(row["protocol"], str(row["seed"]), row["stream"]) for row in rows}
    old = list(read_csv(path)) if path.exists() else []
    write_csv(path, [*(r for r in old if (r["protocol"], r["seed"], r["stream"]) not in measured), *rows])


def show(rows: list[dict[str, object]]) -> None:
    """A table in per cent."""
    table = Table(title="corrections one batch after another, %")
    for column in ("stream", "seed", "edits", *SHOWN, "cpu s a batch"):
        table.add_column(column.replace("_", " "), justify="left" if column == "stream" else "right")
    for row in rows:
        cells = [f"{100 * float(str(row[column])):.1f}" for column in SHOWN]
        seconds = f"{float(str(row['cpu_seconds_a_batch'])):.2f}"
        table.add_row(str(row["stream"]), str(row["seed"]), str(row["edits"]), *cells, seconds)
    Console(width=150).print(table)


main()
