"""Train an image classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.data.views import view
from weightsmith.errors import WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import Model
from weightsmith.train.loop import FitOptions, History, Training
from weightsmith.train.sharing import Batch


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FitOptions):
    """Hyper-parameters: AdamW, linear warm-up then cosine decay, gradient norm clipped to 1.

    Attributes:
        epochs, batch_size, lr, weight_decay: as usual.
        warmup: share of all steps over which the learning rate rises.
        augment: random views of the training images, "none", "light", "natural", "natural-colour" or "dihedral".
        label_smoothing: share ε of the wanted distribution that all classes have alike (Szegedy et al. 2016, section 7):
            1 - ε + ε/classes for the right class and ε/classes for each other, in the training loss alone.
        seed: of the order of the images and the views.
    """

    augment: str = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        view(self.augment, "--augment")
        if not 0 <= self.label_smoothing < 1:
            raise WeightsmithError(
                f"--label-smoothing must be at least 0 and less than 1, not {self.label_smoothing:g}: give 0.1, or 0 for none"
            )


def fit(
    model: Model,
    train: ImageSet,
    val: ImageSet,
    options: TrainOptions,
    checkpoint: Path,
    *,
    resume: bool = False,
    pin_memory: bool = True,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> History:
    """Train `model` in place and leave it with the weights of the epoch of best validation accuracy.

    The checkpoint holds weights, optimizer, scheduler, gradient scaler, random state and history. One that matches
    (same data, initial weights and hyper-parameters, by hash) and is finished is loaded instead of training; one that
    matches and is not finished is continued with `resume`, and the result is that of an undisturbed run at the same
    thread count.

    Args:
        pin_memory: page-locked batches, for CUDA only.
        on_epoch: called with the rows so far after every epoch; a row has val_loss and val_accuracy.

    Raises:
        WeightsmithError: a checkpoint of other data, model or hyper-parameters, a damaged one, an unfinished one
            without `resume`, or a loss that is no number.
        HeldOutError: a sealed part.
    """
    return ImageTraining(model, train, val, options, checkpoint, pin_memory, on_epoch).go(resume)


class ImageTraining(Training):
    """One training of an image classifier; what its loss is, its kinds may say."""

    data_words = {"train": "other training images", "val": "other validation images"}  # noqa: RUF012

    def __init__(
        self,
        model: Model,
        train: ImageSet,
        val: ImageSet,
        options: TrainOptions,
        checkpoint: Path,
        pin_memory: bool,
        on_epoch: Callable[[list[dict[str, float]]], None] | None,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        """Set up a training; `beside` are hashes of what else its result depends on."""
        steps = [math.ceil(len(train) / options.batch_size)] * options.epochs
        data = {"train": train.digest(), "val": val.digest(), **(beside or {})}
        super().__init__(model, options, steps, data, checkpoint, on_epoch)
        self.train, self.val, self.augment, self.smoothing = train, val, options.augment, options.label_smoothing
        self.labels = torch.from_numpy(train.labels)
        self.pin_memory = pin_memory and self.device.type == "cuda"
        self.order = (-1, np.empty(0, dtype=np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "train": self.train.alone(),
            "val": None,
            "order": (-1, np.empty(0, dtype=np.int64)),
        }

    def _forward(self, epoch: int, step: int) -> Batch | None:
        options = self.options
        if self.order[0] != epoch:
            # The order depends on seed and epoch alone, so that a resumed epoch goes on where it stopped.
            self.order = epoch, np.random.default_rng([options.seed, epoch]).permutation(len(self.train))
        which = self.order[1][step * options.batch_size : (step + 1) * options.batch_size]
        own = self.share.of(len(which))
        if own.start == own.stop:
            return None
        pixels, wanted = self.train.pixels(which[own]), self.labels[which[own]]
        if self.augment != "none":
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch * self.steps[epoch] + step)
            # Views are drawn for a batch as a whole; those of the other parts' images are black here, and thrown away.
            batch = torch.zeros(len(which), *pixels.shape[1:])
            batch[own] = pixels.float()
            pixels = view(self.augment)(batch, generator)[own].round().to(torch.uint8)
        if self.pin_memory:
            pixels, wanted = pixels.pin_memory(), wanted.pin_memory()
        wanted = wanted.to(self.device, non_blocking=True)
        logits = self.model.logits(self.model.preprocess(pixels, self.device))
        return Batch(self._loss(logits, wanted, pixels), int((logits.argmax(-1) == wanted).sum()), len(wanted))

    def _loss(self, logits: Tensor, wanted: Tensor, pixels: Tensor) -> Tensor:  # noqa: ARG002
        """Of the logits (b, classes) for images (b, channels, height, width) uint8, whose classes are wanted."""
        return F.cross_entropy(logits, wanted, label_smoothing=self.smoothing)

    def _measure(self) -> dict[str, float]:
        seen = predict(self.model, self.val, title="validation")
        return {"val_loss": float(F.cross_entropy(seen.logits, seen.labels)), "val_accuracy": seen.accuracy}

    def _score(self, row: dict[str, float]) -> float:
        return row["val_accuracy"]

    def _told(self, row: dict[str, float]) -> str:
        return f"val accuracy {row['val_accuracy']:.4f}"
