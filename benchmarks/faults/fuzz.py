"""Damaged files, many thousands, through every reader: how many read, how many are refused, how many crash.

    python benchmarks/faults/fuzz.py --inputs 100000

Inputs follow from the seed; a crash is written to --crashes with its traceback. The table is written as rows.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console
from rich.table import Table

from benchmarks.shared import keep
from tests.fuzz.campaign import Tally, campaign
from tests.fuzz.readers import READERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all; slow readers get fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=[])
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-crashes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.csv")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    chosen = [reader for reader in READERS if not given.readers or reader.name in given.readers]
    share = given.inputs / sum(1 / reader.costs for reader in chosen)
    rows: list[dict[str, object]] = []
    console, seen = Console(), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        for reader in chosen:
            tally, crashes, began = Tally(), 0, time.perf_counter()
            count = round(share / reader.costs + 0.5)
            for crash in campaign(reader, given.seed, count, Path(place) / "files", tally):
                crashes += 1
                seen[crash.where] += 1
                if seen[crash.where] == 1:
                    console.print(f"[red]{crash.reader}[/] {crash.seed}/{crash.number}", crash.where, markup=True)
                    given.crashes.mkdir(parents=True, exist_ok=True)
                    stem = f"{crash.reader.replace(' ', '-')}-{crash.number}"
                    (given.crashes / stem).write_bytes(crash.content)
                    (given.crashes / f"{stem}.txt").write_text(crash.what)
            rows.append(
                {
                    "reader": reader.name, "inputs": tally.inputs, "refused": tally.refused,
                    "read": tally.inputs - tally.refused - crashes, "crashes": crashes,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )  # fmt: skip
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    console.print(f"{sum(int(str(row['inputs'])) for row in rows):,} inputs, {sum(seen.values()):,} crashes")
    keep(rows, given.out.parent, given.out.stem, ("reader",))


if __name__ == "__main__":
    main()
