"""Whether a budget of KL holds on images that the search never saw, how small the model is, and what the search costs.

    python benchmarks/compress/budget.py --data digits cifar10
    python benchmarks/compress/budget.py --data tiny-imagenet --tiny-imagenet FOLDER --seeds 0 --fitting 384 --judging 128

Maps are fitted to images of the train part and attempts are judged by images of the validation part; KL and accuracy are of
the held-out part. `passes` are forward-equivalents over the calibration images, which are those of both: to try every neuron
by itself would take as many as there are neurons. `removed_alone` is that number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import CIFAR, keep, kl, subjects
from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.data.split import Split, sample
from weightsmith.evaluate import accuracy_change, answers_of, divergence
from weightsmith.models import Model

KEYS = ("data", "seed", "threshold")


def measured(model: Model, split: Split, seed: int, given: argparse.Namespace) -> list[dict[str, object]]:
    """One row a threshold."""
    before = answers_of(model, split.held_out)
    shape = ws.prune.shape_of(model)
    fitting, judging = sample(split.train, given.fitting, seed), sample(split.val, given.judging, seed)
    rows: list[dict[str, object]] = []
    for threshold in given.thresholds:
        found = ws.prune.within_kl(model, fitting, threshold, ws.prune.Ways(seed=seed), judging=judging)
        after = answers_of(found.model, split.held_out)
        change, held = accuracy_change(before, after), divergence(before, after)
        info = {name: float(str(found.info[name])) for name in ("macs", "macs_whole", "passes", "seconds", "kl_bound")}
        row: dict[str, object] = {
            "seed": seed,
            "threshold": threshold,
            "fitting": len(fitting),
            "judging": len(judging),
        }
        row |= {"macs_share": info["macs"] / info["macs_whole"], "parameters_share": _parameters(found.model, model)}
        row |= {"kl_judging": found.kl.value, "kl_bound": info["kl_bound"], "kl_held_out": kl(before, after)}
        row |= {"kl_held_out_low": held.low, "kl_held_out_high": held.high, "of_budget": held.value / threshold}
        row |= {"accuracy_before": before.accuracy, "change": change.value}
        row |= {"change_low": change.low, "change_high": change.high, "held_out": change.n}
        row |= {"passes": info["passes"], "removed_alone": sum(shape.neurons), "seconds": info["seconds"]}
        row |= {"threads": torch.get_num_threads()}
        rows.append({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def _parameters(smaller: Model, whole: Model) -> float:
    mine, theirs = (sum(one.numel() for one in model.module.parameters()) for model in (smaller, whole))
    return mine / theirs


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="KL budgets; held-out KL as a share of the budget")
    columns = (
        "data",
        "seed",
        "threshold",
        "macs_share",
        "kl_judging",
        "kl_held_out",
        "of_budget",
        "change",
        "passes",
        "seconds",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "data" else "right")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=["digits", "cifar10", "tiny-imagenet"], default=["digits"])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.01, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fitting", type=int, default=512, help="images of the train part")
    parser.add_argument(
        "--judging", type=int, default=512, help="images of the validation part, all where there are fewer"
    )
    parser.add_argument("--cifar", type=Path, default=CIFAR)
    parser.add_argument("--cifar-models", type=Path, default=Path("runs/benchmark-cifar"))
    parser.add_argument("--tiny-imagenet", type=Path, default=Path("tiny-imagenet-200"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-compress"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for data in given.data:
        for seed in given.seeds:
            model, split = subjects(data, seed, given.work, given.cifar, given.cifar_models, given.tiny_imagenet)
            rows += [{"data": data, **row} for row in measured(model, split, seed, given)]
            keep(rows, given.out, "budget", KEYS)
    show(rows)


if __name__ == "__main__":
    main()
