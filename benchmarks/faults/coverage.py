"""Damaged files that coverage guides (atheris, Google's libFuzzer for Python) through the readers of binary files.

    pip install atheris; python benchmarks/faults/coverage.py --seconds 60

libFuzzer keeps the inputs that reach new lines of weightsmith and changes them further. Each reader runs in a child of its own,
since libFuzzer ends its process. What is neither read nor refused in one sentence is a crash: it is written to --crashes and
counted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

READERS = (
    "safetensors",
    "shards",
    "state dict",
    "delta",
    "npz",
    "packed npz",
    "png",
    "jpeg",
    "tiff",
    "palette gif",
    "parquet",
    "adapter weights",
    "journal's tensors",
    "kept tensors",
    "split indices",
    "training",
)
"""Those of tests/fuzz/readers.py whose files are binary."""


def reads(name: str, seconds: int, place: Path) -> None:
    """Let libFuzzer drive one reader; never returns."""
    import logging
    import warnings

    import atheris

    with atheris.instrument_imports(include=["weightsmith"]):
        from tests.fuzz.campaign import tried
        from tests.fuzz.readers import READERS as KNOWN
        from tests.fuzz.readers import fresh
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    reader = next(one for one in KNOWN if one.name == name)
    path, good = fresh(reader, place / "files")
    corpus = place / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(good)

    def one(content: bytes) -> None:
        path.write_bytes(content)
        what = tried(reader, path)
        if what:
            raise RuntimeError(what)

    atheris.Setup(
        [
            name,
            f"-max_total_time={seconds}",
            f"-max_len={2 * len(good) + 4096}",
            f"-artifact_prefix={place}/",
            str(corpus),
        ],
        one,
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--readers", nargs="*", default=list(READERS))
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()) / "weightsmith-crashes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.csv")
    parser.add_argument("--one", nargs=2, metavar=("READER", "PLACE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        reads(given.one[0], given.seconds, Path(given.one[1]))
    from benchmarks.shared import keep  # brings weightsmith along, which the child instruments first

    rows: list[dict[str, object]] = []
    for name in given.readers:
        with tempfile.TemporaryDirectory() as place:
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "--seconds", str(given.seconds), "--one", name, place],
                capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
            said = done.stdout + done.stderr
            counted = re.findall(r"^#(\d+)\s.*?cov: (\d+)", said, re.MULTILINE)
            first, last = (counted[0], counted[-1]) if counted else (("0", "0"), ("0", "0"))
            crashes = [path for path in Path(place).iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
            for path in crashes:
                given.crashes.mkdir(parents=True, exist_ok=True)
                (given.crashes / f"{name.replace(' ', '-')}-{path.name}").write_bytes(path.read_bytes())
                (given.crashes / f"{name.replace(' ', '-')}-{path.name}.txt").write_text(said[-20_000:])
        rows.append(
            {
                "reader": name, "inputs": int(last[0]), "coverage_at_start": int(first[1]), "coverage": int(last[1]),
                "crashes": len(crashes), "seconds": round(time.monotonic() - began, 1),
            }
        )  # fmt: skip
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
        if not counted:
            sys.stdout.write(said[-2000:])
        keep(rows, given.out.parent, given.out.stem, ("reader",))


if __name__ == "__main__":
    main()
