"""What the benchmarks of compression share: the trained model of a data set and seed, and the divergence of another from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import weightsmith as ws
from weightsmith.data.split import Split
from weightsmith.measure import Predictions
from weightsmith.models import Model, load

sys.path.append(str(Path(__file__).parents[1]))
from shared import keep, trained

__all__ = ["B2_RECIPE", "CIFAR", "keep", "kl", "subjects", "trained"]

CIFAR = Path(os.environ.get("WEIGHTSMITH_TEST_DATA", "../shared/data")) / "cifar10"
B2_RECIPE = {"epochs": 3, "lr": 3e-4}
"""Of Tiny-ImageNet's shape on a CPU, for a model that has begun to learn; its preset has 50 epochs."""


def subjects(
    data: str, seed: int, work: Path, cifar: Path, cifar_models: Path, tiny: Path | None = None
) -> tuple[Model, Split]:
    """The trained model of a seed, and the parts of its data.

    Args:
        data: digits, cifar10 or tiny-imagenet.
        tiny: Tiny-ImageNet's folder, or one laid out like it.

    Raises:
        SystemExit: a CIFAR-10 model that was not trained yet.
    """
    if data == "digits":
        split = ws.data.digits().split(held_out=0.2, seed=seed, val_ratio=0.1)
        return trained("digits", split, seed, work)[0], split
    if data == "tiny-imagenet":
        split = ws.data.open_data(str(tiny), 64).split(held_out="val", val_ratio=0.1, seed=seed)
        return trained("tiny-imagenet", split, seed, work, **B2_RECIPE)[0], split
    folder = cifar_models / f"cifar-{seed}"
    if not (folder / "seconds.json").exists():
        raise SystemExit(
            f"there is no trained model in {folder}: run benchmarks/correct/cifar.py --model-seed {seed} first"
        )
    return load(folder / "model"), ws.data.open_data(str(cifar)).split(held_out="test", val_ratio=0.1, seed=0)


def kl(before: Predictions, after: Predictions) -> float:
    """Mean KL(before || after) over images, nats."""
    was, now = (one.logits.double().log_softmax(-1) for one in (before, after))
    return float((was.exp() * (was - now)).sum(-1).mean())
