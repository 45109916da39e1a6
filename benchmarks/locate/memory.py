"""1,000 images, 12 layers, 12 heads: how much memory a sweep takes, and whether it goes on after a kill.

    python benchmarks/locate/memory.py                  # about 12 minutes on two cores

A process sweeps all heads and is killed (SIGKILL) half-way; a second one goes on; a third sweeps the first tenth of the
images undisturbed, with which the others are compared bit by bit. The peak is the largest resident memory of a process,
less what it had when the network and the images were there.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MEMORY = 256 * 2**20


def sweep_heads(images: int, folder: Path, out: Path) -> None:
    """Sweep, with the checkpoint in `folder`; restored values, seconds and peak to `out`."""
    import torch
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTForImageClassification

    from weightsmith.locate import ImageCases, grids, sweep
    from weightsmith.locate.cases import UNDECIDED
    from weightsmith.models import load

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=192, num_hidden_layers=12, num_attention_heads=12, intermediate_size=768,
        num_labels=10, initializer_range=0.1,
    )  # fmt: skip
    model = load(ViTForImageClassification(config).eval().requires_grad_(False))
    drawn = torch.randint(0, 256, (2, 1000, 3, 32, 32), dtype=torch.uint8)[:, :images].contiguous()
    undecided = torch.full((images,), UNDECIDED)
    cases = ImageCases(model, tuple(map(str, range(images))), drawn[0], drawn[1], undecided, undecided)
    before, started = _peak(), time.perf_counter()
    # The memory for kept runs is given, so that a tenth of the images is cut into the same pieces as all of them.
    found = sweep(model, cases, grids.heads(model), min_gap=0.0, memory=MEMORY, checkpoint=folder)
    values = {name: tensor.contiguous() for name, tensor in found.restored.items()}
    save_file(values, out)
    told = {"seconds": round(time.perf_counter() - started, 1), "before_mb": before, "peak_mb": _peak()}
    out.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")


def _peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, type=Path, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sweep_heads(given.images, *given.child)
        return
    from safetensors.torch import load_file

    from weightsmith.files import write_json
    from weightsmith.run.folder import environment

    work = Path(tempfile.mkdtemp())

    def start(images: int, folder: str, out: str) -> subprocess.Popen[bytes]:
        child = ["--images", str(images), "--child", str(work / folder), str(work / out)]
        return subprocess.Popen([sys.executable, __file__, *child])

    def pieces() -> int:
        return sum(1 for _ in (work / "cases").glob("*.safetensors"))

    try:
        part = start(given.images // 10, "part", "part.safetensors")
        part.wait()
        first = start(given.images, "cases", "killed.safetensors")
        per_piece = _images_of(min((work / "part").glob("*.safetensors")))
        compared = given.images // 10 // per_piece * per_piece  # the last piece of a tenth is a smaller one
        while pieces() * per_piece < given.images // 2:
            if first.poll() is not None:
                raise SystemExit("the sweep ended before it could be killed")
            time.sleep(0.1)
        first.kill()
        first.wait()
        kept = pieces()
        second = start(given.images, "cases", "all.safetensors")
        second.wait()
        everything, tenth = load_file(work / "all.safetensors"), load_file(work / "part.safetensors")
        same = all((everything[name][:compared] == tenth[name][:compared]).all() for name in tenth)
        told = json.loads((work / "all.json").read_text(encoding="utf-8"))
        tenth_told = json.loads((work / "part.json").read_text(encoding="utf-8"))
        row = {
            "images": given.images, "layers": 12, "heads": 12, "tokens": 65, "width": 192,
            "pieces_before_the_kill": kept, "pieces": pieces(),
            "images_compared": compared,
            "bitwise_equal_to_undisturbed": bool(same),
            "seconds_after_the_kill": told["seconds"],
            "seconds_of_a_tenth": tenth_told["seconds"],
            "peak_mb_above_start": round(told["peak_mb"] - told["before_mb"], 1),
            "peak_mb_above_start_of_a_tenth": round(tenth_told["peak_mb"] - tenth_told["before_mb"], 1),
            "peak_mb": told["peak_mb"],
            "memory_option_mb": MEMORY / 2**20,
            "machine": environment(),
        }  # fmt: skip
        print(json.dumps(row, indent=2))
        write_json(given.out / "memory.json", row)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _images_of(piece: Path) -> int:
    first, end = piece.stem.split("-")[1:]
    return int(end) - int(first)


if __name__ == "__main__":
    main()
