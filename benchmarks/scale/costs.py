"""What editing costs, from the shape of a network: computed for sizes that nobody here can run, from rates measured here.

    python benchmarks/scale/costs.py            # a minute; wants a machine on which nothing else runs

Counted, per network: its weights; bytes of them, and of what is in memory at a time with `--device disk` (what lies outside the
blocks, and two blocks); a second moment of keys (d, d) in float64, two of which are there while a layer's keys are read and
five while its metric is made; operations of a token's forward pass, of key statistics over 100,000 tokens up to the last edited
layer (forward passes, and d² a token for the symmetric sum), of the metric of a layer (Cholesky d³/3 for MEMIT, eigenvectors
9 d³ for AlphaEdit), and of one step of the target values of one fact (forward and backward through the blocks behind the last
edited layer, 60 tokens of prefixed prompts, three times a forward pass). Seconds are those at the rates measured here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.shared import keep

RESULTS = Path(__file__).parent / "results"
TOKENS, PROMPT = 100_000, 60


@dataclass(frozen=True)
class Shape:
    """The shape of a network.

    Attributes:
        blocks, width, keys: of the residual stream and of the MLP's keys.
        shared: width of all keys (or values) of attention together, narrower with grouped queries.
        gated: the MLP has a third map.
        outside: weights outside the blocks; stored: bytes of a weight as published.
        last: the last layer that the papers, or our defaults, edit.
    """

    name: str
    blocks: int
    width: int
    keys: int
    shared: int
    gated: bool
    outside: int
    stored: int
    last: int

    @property
    def block(self) -> int:
        """Weights of a block, its biases and norms left out."""
        attention = 2 * self.width**2 + 2 * self.width * self.shared
        return attention + (3 if self.gated else 2) * self.width * self.keys

    @property
    def weights(self) -> int:
        return self.outside + self.blocks * self.block


SHAPES = (
    Shape("ViT-B/16", 12, 768, 3072, 768, False, 16 * 16 * 3 * 768 + 197 * 768 + 768_000, 4, 11),
    Shape("ViT-L/16", 24, 1024, 4096, 1024, False, 16 * 16 * 3 * 1024 + 197 * 1024 + 1_024_000, 4, 23),
    Shape("ViT-H/14", 32, 1280, 5120, 1280, False, 14 * 14 * 3 * 1280 + 257 * 1280 + 1_280_000, 4, 31),
    Shape("GPT-2 XL", 48, 1600, 6400, 1600, False, 50_257 * 1600 + 1024 * 1600, 4, 17),
    Shape("GPT-J 6B", 28, 4096, 16_384, 4096, False, 2 * 50_400 * 4096, 2, 8),
    Shape("Llama-3 8B", 32, 4096, 14_336, 1024, True, 2 * 128_256 * 4096, 2, 8),
    Shape("Llama-3 70B", 80, 8192, 28_672, 1024, True, 2 * 128_256 * 8192, 2, 20),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = rates()
    rows = [row_of(shape, found) for shape in SHAPES]
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = Console(width=240)
    console.print(table)
    console.print(
        f"{torch.get_num_threads()} threads: "
        + ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in found.items())
    )
    keep(rows, given.out, "costs", keys=("network",))
    told = [
        {"what": name, "gflops": round(rate / 1e9, 1), "threads": torch.get_num_threads()}
        for name, rate in found.items()
    ]
    keep(told, given.out, "rates", keys=("what",))


def row_of(shape: Shape, rate: dict[str, float]) -> dict[str, object]:
    """What a network costs."""
    moment = 8 * shape.keys**2
    forward = 2 * shape.weights
    read = TOKENS * (2 * shape.block * (shape.last + 1) + shape.keys**2)
    cholesky, vectors = shape.keys**3 / 3, 9 * shape.keys**3
    step = 3 * PROMPT * 2 * (shape.block * (shape.blocks - 1 - shape.last) + shape.outside / 2)
    return {
        "network": shape.name,
        "weights": f"{shape.weights / 1e9:.2f} B",
        "as stored": f"{shape.weights * shape.stored / 1e9:.1f} GB",
        "from disk, at a time": f"{(shape.outside + 2 * shape.block) * shape.stored / 1e9:.2f} GB",
        "d": shape.keys,
        "a moment": f"{moment / 1e9:.2f} GB",
        "reading keys": f"{2 * moment / 1e9:.2f} GB",
        "a metric": f"{5 * moment / 1e9:.2f} GB",
        "forward, a token": f"{forward / 1e9:.2f} GFLOP",
        "100,000 tokens' keys": _told(read, rate["products, float32"]),
        "MEMIT, a layer": _told(cholesky, rate["Cholesky, float64"]),
        "AlphaEdit, a layer": _told(vectors, rate["eigenvectors, float64"]),
        "a step of a value": _told(step, rate["products, float32"]),
    }


def rates() -> dict[str, float]:
    """Floating-point operations a second, here: the best of three of each."""
    size, square = 2048, torch.randn(3072, 3072, dtype=torch.float64)
    moment = square @ square.mT / 3072 + torch.eye(3072, dtype=torch.float64)
    one, other = torch.randn(size, size), torch.randn(size, size)
    return {
        "products, float32": 2 * size**3 / _seconds(lambda: one @ other),
        "Cholesky, float64": 3072**3 / 3 / _seconds(lambda: torch.linalg.cholesky(moment)),
        "eigenvectors, float64": 9 * 3072**3 / _seconds(lambda: torch.linalg.eigh(moment)),
    }


def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _told(operations: float, rate: float) -> str:
    seconds = operations / rate
    units = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), (1.0, "s"))
    return f"{operations / 1e12:.3g} TFLOP, {seconds / size:.2g} {unit}"


if __name__ == "__main__":
    main()
