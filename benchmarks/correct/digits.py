"""Correct the digits model of `make demo`, three seeds, with every editor on the same corrections.

python benchmarks/correct/digits.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import edit_rows, keep, show, trained

import weightsmith as ws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--val-ratio", type=float, default=0.3)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-digits"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        split = ws.data.digits().split(held_out=0.2, seed=seed, val_ratio=given.val_ratio)
        model, seconds = trained("digits", split, seed, given.work)
        errors = ws.misclassified(model, split.val, limit=30, seed=seed)
        columns = {"protocol": "digits", "seed": seed, "training_seconds": round(seconds, 1)}
        rows += edit_rows(model, errors, split.train, split.held_out, "light", given.work, **columns)
    keep(rows, given.out, "digits")
    show(rows, f"digits, mean (seeds {', '.join(map(str, given.seeds))}), %")


main()
