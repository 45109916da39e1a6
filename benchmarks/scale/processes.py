"""How much sooner two processes of one thread are through than one: tracing, key statistics, predictions, training.

    python benchmarks/scale/processes.py                     # some minutes; wants a machine on which nothing else runs

A random ViT of DeiT-tiny's shape at 64 pixels (65 tokens, width 192, 12 blocks, 3 heads) on images of noise. One process and
two under torchrun take turns, each a job of its own; what is timed is the call, from process 0, with imports and starts left
out and the first, small call (connections, kernels) as well. The statistics and the traces of both are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.shared import keep

RESULTS = Path(__file__).parent / "results"
WORKS = ("tracing", "key statistics", "predictions", "training")
SIZES = {
    "image_size": 64, "patch_size": 8, "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3,
    "intermediate_size": 768, "num_labels": 10,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=1024, help="for statistics, predictions and an epoch of training")
    parser.add_argument("--cases", type=int, default=16, help="traced images, ten noise samples each")
    parser.add_argument("--what", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.images, given.cases, given.what)
        return
    times: dict[str, dict[int, list[float]]] = {}
    results: dict[str, set[str]] = {}
    for number in range(given.rounds):
        for processes in (1, given.processes):
            for name, (seconds, result) in asked(processes, given).items():
                times.setdefault(name, {}).setdefault(processes, []).append(seconds)
                results.setdefault(name, set()).add(result)
        print(number + 1, {name: {p: round(t[-1], 2) for p, t in by.items()} for name, by in times.items()}, flush=True)
    rows: list[dict[str, object]] = []
    for name, by in times.items():
        ratios = [one / more for one, more in zip(by[1], by[given.processes], strict=True)]
        rows.append(
            {
                "what": name,
                "processes": given.processes,
                "rounds": given.rounds,
                "one_s": round(statistics.median(by[1]), 2),
                "several_s": round(statistics.median(by[given.processes]), 2),
                "sooner": round(statistics.median(ratios), 2),
                "sooner_least": round(min(ratios), 2),
                "sooner_most": round(max(ratios), 2),
                "same_to_the_bit": len(results[name]) == 1,
            }
        )
        print(rows[-1])
    keep(rows, given.out, "processes", keys=("what", "processes"))


def asked(processes: int, given: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """What a job of so many processes takes, by what it does."""
    job = [sys.executable]
    if processes > 1:
        job += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        job += [__file__, "--child", folder, "--images", str(given.images), "--cases", str(given.cases)]
        job += ["--what", *given.what]
        subprocess.run(job, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        told: dict[str, tuple[float, str]] = json.loads((Path(folder) / "told.json").read_text())
    return told


def child(folder: Path, images: int, cases: int, what: Sequence[str]) -> None:
    """Do the work in this process, with the help of whoever else is there, and write what it took."""
    import numpy as np
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    import weightsmith as ws
    from weightsmith import ranks
    from weightsmith.data.corruptions import EmbeddingNoise
    from weightsmith.data.split import from_arrays
    from weightsmith.locate import ImageCases, grids, sweep
    from weightsmith.measure import key_moment, predict
    from weightsmith.site import Site
    from weightsmith.train import TrainOptions, fit

    torch.set_num_threads(1)

    def network() -> ws.Model:
        torch.manual_seed(0)
        return ws.load(ViTForImageClassification(ViTConfig(**SIZES)))

    pixels = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    names = tuple(f"class {number}" for number in range(10))
    samples = from_arrays(pixels, np.arange(images) % 10, names, "noise", "train")
    told: dict[str, tuple[float, str]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        if name not in what:
            return
        started = time.perf_counter()
        result = work()
        told[name] = time.perf_counter() - started, hashlib.sha256(repr(result).encode()).hexdigest()

    with ranks.led():
        model = network()
        predict(model, samples.subset(range(16)), 8)
        at = [Site("mlp.value", layer) for layer in range(12)]
        undecided = torch.full((cases,), -1)
        traced = ImageCases(
            model,
            tuple(map(str, range(cases))),
            samples.pixels(slice(cases)),
            EmbeddingNoise(3.0, 10, 0),
            undecided,
            undecided,
        )
        sites = grids.heads(model) + [
            site for kind in ("resid.out", "attn.out", "mlp.out") for site in grids.layers(model, kind, "cls", (1,))
        ]
        timed("tracing", lambda: sweep(model, traced, sites, min_gap=0.0).effects().values.tolist())
        moments = lambda: [round(float(m.matrix.norm()), 5) for m in key_moment(model, at, samples, folder).values()]  # noqa: E731
        timed("key statistics", moments)
        timed("predictions", lambda: predict(model, samples).logits.tolist())
        options = TrainOptions(epochs=1, batch_size=64, lr=1e-4)
        timed(
            "training", lambda: fit(network(), samples, samples.subset(range(64)), options, folder / "c.pt").best_epoch
        )
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
