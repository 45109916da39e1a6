"""Correct a small ViT on histology under two protocols, five seeds, with every editor on the same corrections.

S, a new site: 30 errors come from one random half of the test patients' images, the other half is held out.
P, other patients: 30 errors come from the validation patients, all test images are held out.
V, for choosing hyper-parameters: 30 errors come from one half of the validation images, the other half is held out.

S and P were looked at while the editor was developed (docs/correct.md says how), so they are development results.

    python benchmarks/correct/histology.py --data histology_27.npz
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common import EDITORS, edit_rows, keep, protocols, show, trained

import weightsmith as ws

DEFAULT = Path(os.environ.get("WEIGHTSMITH_TEST_DATA", "../shared/data")) / "medmnist" / "histology_27.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--protocols", nargs="+", choices=["V", "S", "P"], default=["V", "S", "P"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-histology"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    source = ws.data.medmnist(given.data)
    split = source.split(held_out="test")
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        model, seconds = trained("small", split, seed, given.work)
        print(f"seed {seed}: trained in {seconds:.0f} s", flush=True)
        parts = protocols(split, source.part("test"), seed)
        for protocol in given.protocols:
            corrections, held_out = parts[protocol]
            errors = ws.misclassified(model, corrections, limit=given.edits, seed=seed)
            columns = {"protocol": protocol, "seed": seed, "training_seconds": round(seconds, 1)}
            site = protocol == "S"
            rows += edit_rows(
                model, errors, split.train, held_out, "dihedral", given.work, site, given.editors, **columns
            )
    keep(rows, given.out, "histology" if given.edits == 30 else f"histology_{given.edits}")
    show(rows, f"histology, {given.edits} edits, mean (seeds {', '.join(map(str, given.seeds))}), %")


main()
