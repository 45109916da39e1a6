"""How much of the multiply-adds that compression saves shows as time, for the shape of the preset tiny-imagenet.

    python benchmarks/compress/latency.py

Time does not depend on the weights, so they are random here and so is what is kept, an equal share of heads and neurons, MLP
widths rounded to `--multiple`; `--model FOLDER` takes a trained one. All contenders run in turn, in an order drawn anew each
round, the whole model twice (A/A). Run it where nothing else does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from peers import VARIANTS, best_scored, noise_images, torch_pruned
from rich.console import Console
from rich.table import Table

from weightsmith.measure import Cost, Interval, Latency, latencies
from weightsmith.models import Model, create, load
from weightsmith.prune import cls_only, removed, shape_of

sys.path.append(str(Path(__file__).parents[1]))
from shared import keep

WHOLE, AGAIN = "whole", "the whole model again"


def narrowed(model: Model, share: float, multiple: int, seed: int) -> Model:
    """An equal share of heads and neurons, drawn by lot; MLP widths are multiples."""
    shape, random = shape_of(model), np.random.default_rng(seed)
    heads, neurons = ([random.random(count).tolist() for count in counts] for counts in (shape.heads, shape.neurons))
    kept = best_scored(shape, heads, neurons, share).rounded(neurons, multiple)
    return removed(model, kept, None, fold="none")


def contenders(model: Model, given: argparse.Namespace) -> dict[str, Model]:
    """Name → model, the whole one first."""
    made = {WHOLE: model, AGAIN: model, "CLS only": cls_only(model)}
    for share in given.shares:
        made[f"kept {share}"] = narrowed(model, share, given.multiple, given.seed)
        made[f"kept {share}, CLS only"] = cls_only(made[f"kept {share}"])
    whole, images = Cost.of(model).macs, noise_images(model, 64, given.seed)
    for name in given.variants:
        share = Cost.of(made[f"kept {given.peer_share}"]).macs / whole
        # Where entries of heads go, it rounds them to fractions of all heads' entries and refuses large multiples;
        # 2 is what its example rounds to.
        multiple = given.multiple if VARIANTS[name].cuts == "heads" else 2
        made[f"Torch-Pruning, {name}"] = torch_pruned(model, images, share, VARIANTS[name], multiple)
    return made


def shown_as_time(times: Interval, macs: float) -> Interval:
    """The share of the saved multiply-adds that is saved time, (1 − time ratio) / (1 − MACs ratio)."""
    bounds = [(1 - ratio) / (1 - macs) for ratio in (times.value, times.high, times.low)]
    return Interval(bounds[0], bounds[1], bounds[2], times.n)


def row_of(name: str, macs: float, times: Latency, whole: Latency) -> dict[str, object]:
    """What was measured of one contender."""
    ratio, (first, third) = times.against(whole), times.quartiles
    row: dict[str, object] = {"contender": name, "batch": times.batch_size, "rounds": ratio.n, "macs_ratio": macs}
    row |= {"ms_median": times.median.value, "ms_low": times.median.low, "ms_high": times.median.high}
    row |= {"ms_first_quartile": first, "ms_third_quartile": third}
    row |= {"time_ratio": ratio.value, "time_ratio_low": ratio.low, "time_ratio_high": ratio.high}
    if macs < 1:
        shown = shown_as_time(ratio, macs)
        row |= {"shown": shown.value, "shown_low": shown.low, "shown_high": shown.high}
    else:
        row |= dict.fromkeys(("shown", "shown_low", "shown_high"), "")
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def show(rows: Sequence[dict[str, object]], title: str) -> None:
    """Medians, with their 95% intervals behind them."""
    table = Table(title=title)
    for column in ("contender", "MACs ratio", "ms a batch", "time ratio", "of the saved MACs, saved time"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows:
        shown = f"{row['shown']:.2f} [{row['shown_low']:.2f}, {row['shown_high']:.2f}]" if row["shown"] != "" else ""
        table.add_row(
            str(row["contender"]),
            f"{row['macs_ratio']:.3f}",
            f"{row['ms_median']:.2f} [{row['ms_low']:.2f}, {row['ms_high']:.2f}]",
            f"{row['time_ratio']:.3f} [{row['time_ratio_low']:.3f}, {row['time_ratio_high']:.3f}]",
            shown,
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a trained ViT; random weights where none is given")
    parser.add_argument("--preset", default="tiny-imagenet", help="the shape, where no model is given")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.6, 0.45, 0.3], help="of the multiply-adds")
    parser.add_argument("--peer-share", type=float, default=0.45, help="the one of --shares at which peers are timed")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=["heads, MLP", "bottleneck, global"])
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.variants and given.peer_share not in given.shares:
        parser.error(f"--peer-share {given.peer_share} is none of --shares {given.shares}: give one of them")
    names = tuple(f"class {one}" for one in range(given.classes))
    model = load(given.model) if given.model else create(given.preset, names, given.seed, channels=3)
    made = contenders(model, given)
    times = latencies(made, [given.batch], given.rounds, most_seconds=3600.0, seed=given.seed)
    whole = Cost.of(model).macs
    rows = [
        row_of(name, Cost.of(one).macs / whole, times[name][given.batch], times[WHOLE][given.batch])
        for name, one in made.items()
    ]
    keep(rows, given.out, "latency", ("contender", "batch"), {"torch-pruning": metadata.version("torch-pruning")})
    show(rows, f"batch {given.batch}, {given.rounds} rounds, medians")


if __name__ == "__main__":
    main()
