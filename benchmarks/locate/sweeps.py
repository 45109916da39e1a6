"""The exact sweep beside the obvious ones, in one run: CPU seconds, wall seconds and the largest difference.

    python benchmarks/locate/sweeps.py tokens heads causal            # about 25 minutes on two cores
    python benchmarks/locate/sweeps.py tokens --without-nnsight

nnsight is timed where it is installed (`pip install nnsight`); it is no requirement of weightsmith. Its `skip` hands the
blocks below a restored one their corrupted outputs instead of running them, as its guide to sweeps recommends. Runs are
interleaved, and the hook loop is timed twice, as its own control (A/A).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import peers
import torch
from shapes import gpt2, noise, vit
from torch import Tensor, nn

from weightsmith.files import write_csv, write_json
from weightsmith.locate import grids, sweep
from weightsmith.models import load
from weightsmith.run.folder import environment

RESULTS = Path(__file__).parent / "results"
PAIR = (0, 1)


@dataclass(frozen=True, eq=False)
class Embedded:
    """One case whose clean and corrupted embeddings are at hand, so that every contender gets the same."""

    clean: Tensor
    corrupted: Tensor
    names: tuple[str, ...] = ("case",)

    @property
    def targets(self) -> Tensor:
        return torch.tensor([PAIR[0]])

    @property
    def foils(self) -> Tensor:
        return torch.tensor([PAIR[1]])

    @property
    def samples(self) -> int:
        return len(self.corrupted)

    def tokens(self, index: int) -> int:
        return self.clean.shape[1]

    def embedded(self, which: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.clean, self.corrupted[None]

    def describe(self) -> dict[str, object]:
        return {}


Run = Callable[[], Tensor]


def contenders(shape: str, with_nnsight: bool, samples: int) -> dict[str, Run]:
    """Each way to run the sweep, by name; all give (layers, sites of a layer)."""
    network: nn.Module
    if shape == "causal":
        network = gpt2(layers=12, width=192, heads=12, vocabulary=1000, positions=64)
        clean, corrupted = noise(network, tokens=64, samples=samples, where=slice(1, 5))
        model = load(network)
        sites = grids.tokens(model, "resid.out", count=clean.shape[1])
        loop, traced = peers.hook_loop_causal, peers.nnsight_causal
    else:
        network = vit(heads=12 if shape == "heads" else 3)
        clean, corrupted = noise(network, samples=samples)
        model = load(network)
        sites = grids.tokens(model, "resid.out") if shape == "tokens" else grids.heads(model)
        loop = peers.hook_loop_tokens if shape == "tokens" else peers.hook_loop_heads
        traced = peers.nnsight_tokens if shape == "tokens" else peers.nnsight_heads
    case = Embedded(clean, corrupted)

    def ours() -> Tensor:
        found = sweep(model, case, sites, metrics=["logit_difference"], min_gap=0.0)
        return found.restored["logit_difference"].view(model.n_layers, -1)

    runs: dict[str, Run] = {
        "hook loop": lambda: loop(network, clean, corrupted, PAIR),
        "weightsmith": ours,
        "hook loop again": lambda: loop(network, clean, corrupted, PAIR),
        "hook loop, 8 sites a pass": lambda: loop(network, clean, corrupted, PAIR, batch=8),
    }
    if with_nnsight:
        runs["nnsight"] = lambda: traced(network, clean, corrupted, PAIR, batch=1, skip=False)
        runs["nnsight, 8 sites a trace, skip"] = lambda: traced(network, clean, corrupted, PAIR)
    return runs


def timed(run: Run) -> tuple[float, float, Tensor]:
    """(CPU seconds of all threads, wall seconds, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = run()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=("tokens", "heads", "causal"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1, help="noise samples")
    parser.add_argument("--without-nnsight", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with_nnsight = not given.without_nnsight and importlib.util.find_spec("nnsight") is not None
    if not with_nnsight:
        print("nnsight is not timed", file=sys.stderr)
    for shape in given.shapes:
        runs = contenders(shape, with_nnsight, given.samples)
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        results: dict[str, Tensor] = {}
        for round_ in range(given.rounds):
            for name, run in runs.items():
                cpu, wall, results[name] = timed(run)
                seen[name].append((cpu, wall))
                print(f"{shape} round {round_}: {name} {cpu:.1f} CPU s, {wall:.1f} s", flush=True)
        reference = results["hook loop"].double()
        slowest = statistics.median(cpu for cpu, _ in seen["hook loop"])
        rows = []
        for name, times in seen.items():
            cpu = statistics.median(cpu for cpu, _ in times)
            rows.append(
                {
                    "shape": shape,
                    "sites": reference.numel(),
                    "samples": given.samples,
                    "contender": name,
                    "cpu_s_median": round(cpu, 2),
                    "cpu_s_min": round(min(cpu for cpu, _ in times), 2),
                    "cpu_s_max": round(max(cpu for cpu, _ in times), 2),
                    "wall_s_median": round(statistics.median(wall for _, wall in times), 2),
                    "times_fewer_cpu_s": round(slowest / cpu, 2),
                    "largest_difference": f"{float((results[name].double() - reference).abs().max()):.1e}",
                    "rounds": given.rounds,
                }
            )
            print(rows[-1], flush=True)
        write_csv(given.out / f"{shape}.csv", rows)
    write_json(given.out / "machine.json", environment())


if __name__ == "__main__":
    main()
