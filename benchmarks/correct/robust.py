"""Whether corrections of a histology model outlive what happens to images and weights: noise, JPEG, half precision.

Errors are of the validation part (protocol V of histology.py); the share of the 30 corrected images that still get their class.

    python benchmarks/correct/robust.py --data histology_27.npz
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import os
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from common import EDITORS, protocols, trained
from PIL import Image
from torch import Tensor

import weightsmith as ws
from weightsmith.files import write_csv
from weightsmith.request import stack_images, targets

DEFAULT = Path(os.environ.get("WEIGHTSMITH_TEST_DATA", "../shared/data")) / "medmnist" / "histology_27.npz"
CHOSEN = ("patcher", "patcher, memory only", "alphaedit", "memit", "head, closed form")


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """The images after a round through JPEG."""
    out = []
    for image in pixels:
        held = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(held, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(held))).permute(2, 0, 1))
    return torch.stack(out)


def noisy(pixels: Tensor, size: float) -> Tensor:
    """With normal noise of so many grey levels."""
    noise = size * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + noise).round().clamp(0, 255).to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-histology"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    source = ws.data.medmnist(given.data)
    split = source.split(held_out="test")
    rows: list[dict[str, object]] = []
    for seed in given.seeds:
        model, _ = trained("small", split, seed, given.work)
        corrections, _ = protocols(split, source.part("test"), seed)["V"]
        requests = ws.misclassified(model, corrections, limit=30, seed=seed)
        pixels, wanted = stack_images(requests), targets(requests)
        half = dataclasses.replace(model, module=copy.deepcopy(model.module))
        shown = {
            "as they are": pixels,
            "noise of 1 level": noisy(pixels, 1.0),
            "noise of 3 levels": noisy(pixels, 3.0),
            "jpeg 95": jpeg(pixels, 95),
            "jpeg 75": jpeg(pixels, 75),
        }
        for name in CHOSEN:
            delta = EDITORS[name](False, "dihedral").solve(model, requests, split.train, given.work / "cache")
            row: dict[str, object] = {"method": name, "seed": seed}
            with torch.no_grad(), delta.on(model):
                for called, images in shown.items():
                    right = model.logits(model.preprocess(images)).argmax(1) == wanted
                    row[called] = round(float(right.float().mean()), 4)
                half.module.load_state_dict(model.module.state_dict())
            for dtype in (torch.bfloat16, torch.float16):
                half.module.to(dtype)
                with torch.no_grad():
                    right = half.logits(half.preprocess(pixels).to(dtype)).argmax(1) == wanted
                row[str(dtype).removeprefix("torch.")] = round(float(right.float().mean()), 4)
                half.module.float()
                with delta.on(model):
                    half.module.load_state_dict(model.module.state_dict())
            rows.append(row)
    write_csv(given.out / "robust.csv", rows)
    for name in CHOSEN:
        mine = [row for row in rows if row["method"] == name]
        print(
            name,
            {
                k: round(100 * mean(float(str(row[k])) for row in mine), 1)
                for k in mine[0]
                if k not in ("method", "seed")
            },
        )


main()
