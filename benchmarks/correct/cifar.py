"""Correct a small ViT on CIFAR-10 under the protocols of histology.py, with every editor on the same corrections.

Here test images are of the same cameras and things as the training images, so neither protocol has a shift to learn.
S: 30 errors come from one random half of the test images, the other half is held out.
P: 30 errors come from the validation part of the training images, all test images are held out.

    python benchmarks/correct/cifar.py --data cifar10
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from common import EDITORS, edit_rows, keep, protocols, show, trained

import weightsmith as ws

DEFAULT = Path(os.environ.get("WEIGHTSMITH_TEST_DATA", "../shared/data")) / "cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT)
    parser.add_argument("--model-seed", type=int, default=0)
    parser.add_argument(
        "--epochs", type=int, default=6, help="the preset has 12; so many take half an hour on one core"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the corrections and of the halves")
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--preserve", type=int, default=8000, help="training images that editors may read")
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--protocols", nargs="+", choices=["V", "S", "P"], default=["S", "P"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-cifar"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    source = ws.data.open_data(str(given.data))
    split = source.split(held_out="test", val_ratio=0.1, seed=0)
    model, seconds = trained("cifar", split, given.model_seed, given.work, epochs=given.epochs)
    print(f"trained in {seconds:.0f} s", flush=True)
    chosen = np.random.default_rng(0).permutation(len(split.train))[: given.preserve]
    preserve = split.train.subset(np.sort(chosen))
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        parts = protocols(split, source.part("test"), seed)
        for protocol in given.protocols:
            corrections, held_out = parts[protocol]
            errors = ws.misclassified(model, corrections, limit=given.edits, seed=seed)
            columns = {"protocol": protocol, "seed": seed, "training_seconds": round(seconds, 1)}
            rows += edit_rows(model, errors, preserve, held_out, "light", given.work, False, given.editors, **columns)
            keep(rows, given.out, "cifar")
    show(rows, f"CIFAR-10, {given.edits} edits, mean (seeds {', '.join(map(str, given.seeds))}), %")


if __name__ == "__main__":
    main()
