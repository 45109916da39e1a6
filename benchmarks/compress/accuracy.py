"""Digits and CIFAR-10 ViTs made smaller without training: what each method costs in accuracy at equal multiply-adds.

    python benchmarks/compress/accuracy.py --data digits
    python benchmarks/compress/accuracy.py --data digits cifar10 --share 0.45

Every method is given the same calibration images of the training part. Accuracy and KL are of the held-out part, which none of
them sees: a fifth of the digits, the test images of CIFAR-10. weightsmith computes CLS alone behind the last attention, which
any method could and which loses nothing; "all tokens" does not. Times are of all methods in turn, the whole model twice (A/A).
The CIFAR-10 models are those of benchmarks/correct/cifar.py, which trains one a `--model-seed`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import CIFAR, keep, kl, subjects
from peers import VARIANTS, magnitude, randomly_removed, torch_pruned
from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.images import ImageSet
from weightsmith.data.split import Split
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import accuracy_change, answers_of
from weightsmith.measure import Cost, latencies
from weightsmith.models import Model

KEYS = ("data", "share", "seed", "method")
AGAIN = "the whole model again"


def circuit(model: Model, images: ImageSet, share: float, seed: int, **ways: Any) -> Model:
    """weightsmith's own: scored, folded and fitted in rounds, on the calibration images alone."""
    return ws.prune.within_macs(model, images, share, ws.prune.Ways(seed=seed, **ways)).model


METHODS: dict[str, Callable[[Model, ImageSet, float, int], Model]] = {
    "weightsmith": circuit,
    "weightsmith, all tokens": lambda *given: circuit(*given, cls_only=False),
    "weightsmith, random units": lambda *given: circuit(*given, score="random"),
    "weightsmith, mean fold": lambda *given: circuit(*given, fold="mean"),
    "magnitude, ridge": lambda model, images, share, seed: magnitude(model, images, share, "ridge"),
    "magnitude": lambda model, images, share, seed: magnitude(model, images, share, "none"),
    "random, ridge": lambda model, images, share, seed: randomly_removed(model, images, share, seed, "ridge"),
    "random": lambda model, images, share, seed: randomly_removed(model, images, share, seed, "none"),
} | {
    f"Torch-Pruning, {name}": lambda model, images, share, seed, variant=variant: torch_pruned(
        model, images, share, variant
    )
    for name, variant in VARIANTS.items()
}
"""By name: from a model, calibration images, the share of its multiply-adds that may stay, and a seed, to a smaller model."""


def measured(model: Model, split: Split, seed: int, given: argparse.Namespace) -> list[dict[str, object]]:
    """One row a method, and one of the whole model timed a second time."""
    chosen = np.random.default_rng(seed).permutation(len(split.train))[: given.calibration]
    images = split.train.subset(np.sort(chosen))
    before = answers_of(model, split.held_out)
    made: dict[str, Model] = {AGAIN: model}
    seconds: dict[str, float] = {AGAIN: 0.0}
    for name in given.methods:
        started = time.perf_counter()
        try:
            made[name] = METHODS[name](model, images, given.share, seed)
        except (ImportError, WeightsmithError) as error:
            print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
            continue
        seconds[name] = time.perf_counter() - started
    times = latencies({"whole": model} | made, [given.batch], given.rounds, most_seconds=600.0, seed=seed)
    rows: list[dict[str, object]] = []
    for name, smaller in made.items():
        after = answers_of(smaller, split.held_out)
        change = accuracy_change(before, after)
        ratio = times[name][given.batch].against(times["whole"][given.batch])
        row: dict[str, object] = {"method": name, "seed": seed, "calibration": len(images), "held_out": change.n}
        row |= {"macs_share": Cost.of(smaller).macs / Cost.of(model).macs, "kl": kl(before, after)}
        row |= {"accuracy_before": before.accuracy, "accuracy_after": after.accuracy}
        row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
        row |= {"time_ratio": ratio.value, "time_ratio_low": ratio.low, "time_ratio_high": ratio.high}
        row |= {"rounds": ratio.n, "seconds": seconds[name]}
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def show(rows: Sequence[dict[str, object]], title: str) -> None:
    """Means over seeds, with the change of accuracy of each seed behind its mean."""
    table = Table(title=title)
    for column in ("method", "MACs share", "KL, nats", "accuracy, %", "change, points (seeds)", "time ratio"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        chosen = [row for row in rows if row["method"] == method]

        def over(name: str, chosen: Sequence[dict[str, object]] = chosen) -> list[float]:
            return [float(str(row[name])) for row in chosen]

        changes = [100 * one for one in over("change")]
        table.add_row(
            method,
            f"{mean(over('macs_share')):.3f}",
            f"{mean(over('kl')):.4f}",
            f"{100 * mean(over('accuracy_after')):.1f}",
            f"{mean(changes):+.2f} ({', '.join(f'{one:+.1f}' for one in changes)})",
            f"{mean(over('time_ratio')):.3f}",
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=["digits", "cifar10"], default=["digits", "cifar10"])
    parser.add_argument("--share", type=float, default=0.45, help="of the multiply-adds, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the models, and of what is drawn")
    parser.add_argument("--calibration", type=int, default=512, help="images of the training part")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--batch", type=int, default=8, help="images a timed pass")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--cifar", type=Path, default=CIFAR)
    parser.add_argument("--cifar-models", type=Path, default=Path("runs/benchmark-cifar"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-compress"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    versions = {"torch-pruning": metadata.version("torch-pruning")}
    for data in given.data:
        rows: list[dict[str, object]] = []
        for seed in given.seeds:
            model, split = subjects(data, seed, given.work, given.cifar, given.cifar_models)
            rows += [{"data": data, "share": given.share} | row for row in measured(model, split, seed, given)]
            keep(rows, given.out, "accuracy", KEYS, versions)
        seeds = ", ".join(map(str, given.seeds))
        show(rows, f"{data}, at most {given.share} of the multiply-adds, no training, mean (seeds {seeds})")


if __name__ == "__main__":
    main()
