"""Where `torch.compile` pays: predictions and training steps, compiled and not, by turns.

    python benchmarks/scale/compiled.py            # some minutes; wants a C++ compiler, and an idle machine

Random ViTs on images of noise: DeiT-tiny's shape at 64 pixels, and ViT-Base's at 224 (two blocks of it, since every block is
compiled alike). A round has a pass of the plain network and one of the compiled one; before the rounds each is called
until it compiles nothing more, and those seconds are what compiling costs. Passes that look at sites are not among them:
a compiled network does not call the hooks that are put on it afterwards.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import ViTConfig, ViTForImageClassification

import weightsmith as ws
from benchmarks.shared import keep
from weightsmith.models import Model

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny, 64 px": {
        "image_size": 64, "patch_size": 8, "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3,
        "intermediate_size": 768,
    },
    "base, 224 px, 2 blocks": {
        "image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}  # fmt: skip
BATCH = 32
STILL = 1.5
"""A call that takes less than so many times the fastest one before has compiled nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    place = tempfile.TemporaryDirectory()  # what was compiled before would be taken from the disk
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = place.name
    rows = [
        row
        for name, shape in SHAPES.items()
        for row in measured(name, shape, given.device, getattr(torch, given.dtype), given.rounds)
    ]
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)
    keep(rows, given.out, "compiled", keys=("device", "dtype", "network", "pass"))


def measured(name: str, shape: dict[str, Any], device: str, dtype: torch.dtype, rounds: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    plain = ws.load(ViTForImageClassification(ViTConfig(num_labels=10, **shape)))
    plain.module.to(device, dtype).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 3, shape["image_size"], shape["image_size"], generator=generator).to(device, dtype)
    labels = torch.randint(10, (BATCH,), generator=generator).to(device)
    found: list[dict[str, object]] = []
    for what, work in WORKS.items():
        compiled = replace(plain, module=copy.deepcopy(plain.module))
        torch._dynamo.reset()
        compiled.module.compile()
        first = until_still(lambda model=compiled, work=work: work(model, inputs, labels), device)
        until_still(lambda work=work: work(plain, inputs, labels), device)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for taken, model in zip(times, (plain, compiled), strict=True):
                taken.append(seconds(lambda model=model, work=work: work(model, inputs, labels), device))
        ratios = sorted(one / other for one, other in zip(*times, strict=True))
        one, other = map(statistics.median, times)
        found.append(
            {
                "device": device, "dtype": str(dtype).removeprefix("torch."), "network": name, "pass": what,
                "plain_s": round(one, 4), "compiled_s": round(other, 4), "compiling_s": round(first, 1),
                "sooner": round(statistics.median(ratios), 2), "sooner_least": round(ratios[0], 2),
                "sooner_most": round(ratios[-1], 2),
            }
        )  # fmt: skip
        print(found[-1], flush=True)
    return found


@torch.no_grad()
def predicted(model: Model, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    model.logits(inputs)


def learned(model: Model, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    F.cross_entropy(model.logits(inputs).float(), labels).backward()
    model.module.zero_grad(set_to_none=True)


WORKS: dict[str, Callable[[Model, torch.Tensor, torch.Tensor], None]] = {
    "predictions": predicted, "a step's gradient": learned,
}  # fmt: skip


def seconds(work: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def until_still(work: Callable[[], None], device: str) -> float:
    """Call it until three calls in a row compile nothing; the seconds beyond those of as many calls that compile nothing."""
    taken = [seconds(work, device)]
    while len(taken) < 4 or max(taken[-3:]) > STILL * min(taken):
        taken.append(seconds(work, device))
    return sum(taken) - len(taken) * min(taken)


if __name__ == "__main__":
    main()
