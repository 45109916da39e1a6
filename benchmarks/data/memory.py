"""Peak memory of opening a large MedMNIST-layout file and reading it through once in training order.

A file of PathMNIST's layout (uint8 RGB images) is made with `--gigabytes` unpacked, then opened in a fresh process.

    python benchmarks/data/memory.py --gigabytes 4
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

SIDE = 224


def make(path: Path, gigabytes: float) -> int:
    """Write the file piece by piece, so that making it needs no memory either."""
    count = int(gigabytes * 1e9 / (SIDE * SIDE * 3))
    labels = (np.arange(count) % 9).astype(np.uint8)[:, None]
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("train_images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
            np.lib.format.write_array_header_2_0(member, header)
            for _ in range(count):
                member.write(rng.integers(0, 256, SIDE * SIDE * 3, dtype=np.uint8).tobytes())
        with archive.open("train_labels.npy", "w") as member:
            np.lib.format.write_array(member, labels)
    return count


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def anonymous() -> float:
    """MiB of memory that is not backed by a file: pages of a memory map can be given back at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def read(path: Path, cache: Path) -> None:
    import weightsmith as ws

    start = peak()
    clock = time.perf_counter()
    train = ws.data.medmnist(path, cache_dir=cache).part("train")
    opened, opened_peak = time.perf_counter() - clock, peak()
    order = np.random.default_rng(0).permutation(len(train))
    most = 0.0
    for begin in range(0, len(train), 256):
        train.pixels(order[begin : begin + 256])
        most = max(most, anonymous())
    print(f"imports {start:.0f} MiB; after opening {opened_peak:.0f} MiB peak ({opened:.1f} s);")
    print(
        f"reading all {len(train):,} images in random order: at most {most:.0f} MiB of its own, {peak():.0f} MiB peak"
    )
    print("with the pages of the memory map that the system chose to keep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--read", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read(*given.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large_224.npz"
        count = make(path, given.gigabytes)
        print(f"{count:,} images of {SIDE} px, {path.stat().st_size / 1e9:.1f} GB")
        for what in ("first time", "again"):
            print(what)
            subprocess.run([sys.executable, __file__, "--read", path, Path(folder) / "cache"], check=True)


main()
