"""What a model says of a set of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.request import ImageRequest

BATCH = 256


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of a set of images beside their labels.

    Attributes:
        logits: (n, classes) float32; labels: (n,) int64; names: one an image.
    """

    logits: Tensor
    labels: Tensor
    names: tuple[str, ...]

    @property
    def probabilities(self) -> Tensor:
        """(n, classes), rows sum to one."""
        return self.logits.softmax(-1)

    @property
    def classes(self) -> Tensor:
        """(n,) the class of largest logit."""
        return self.logits.argmax(-1)

    @property
    def right(self) -> Tensor:
        """(n,) bool."""
        return self.classes == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.float().mean())


@torch.no_grad()
def predict(model: Model, images: ImageSet, batch_size: int = BATCH, title: str = "predicting") -> Predictions:
    """Run the model over a set of images.

    Raises:
        HeldOutError: the set is sealed and no evaluation is under way.
        WeightsmithError: the set is empty or its classes are not the model's.
    """
    if len(images) == 0:
        raise WeightsmithError(f"the {images.part} set holds no images: nothing can be predicted, give another part")
    if images.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{model.name} has {model.n_classes} classes and the data {images.n_classes}: "
            "train on this data, or give data with the model's classes"
        )
    labels = torch.from_numpy(np.array(images.labels))
    batches = math.ceil(len(images) / batch_size)
    if ranks.world() == 1 or batches == 1:
        logits = _logits(model, images, batch_size, title)
    else:
        cut = [
            np.arange(len(images))[each.start * batch_size : each.stop * batch_size] for each in ranks.divided(batches)
        ]
        shares = [(model, images.subset(which).alone(), batch_size, title) for which in cut]
        logits = torch.cat(ranks.everywhere(_logits, shares))
    return Predictions(logits, labels, tuple(images.names()))


@torch.no_grad()
def _logits(model: Model, images: ImageSet, batch_size: int, title: str) -> Tensor:
    """(n, classes) float32."""
    pieces = [torch.empty(0, model.n_classes)]

    def answered(pixels: Tensor, _labels: Tensor) -> Tensor:
        return model.logits(model.preprocess(pixels, model.device)).float().cpu()

    with progress(title, len(images)) as advance:
        for logits in Fitting("predicting").each(answered, images.batches(batch_size)):
            pieces.append(logits)
            advance(len(logits))
    return torch.cat(pieces)


def misclassified(
    model: Model,
    images: ImageSet,
    limit: int | None = None,
    predictions: Predictions | None = None,
    seed: int | None = None,
) -> list[ImageRequest]:
    """One request an image that the model gets wrong, in the order of the set: the wanted class is its label.

    Args:
        limit: at most this many: the first ones, or with `seed` a random choice.
        predictions: of this model on these images, when they are at hand.

    Raises:
        HeldOutError: the set is sealed.
    """
    seen = predictions if predictions is not None else predict(model, images)
    wrong = torch.nonzero(~seen.right).flatten().tolist()
    if limit is not None and limit < len(wrong):
        chosen = range(limit) if seed is None else np.random.default_rng(seed).permutation(len(wrong))[:limit]
        wrong = [wrong[i] for i in sorted(chosen)]
    if not wrong:
        return []
    pixels = images.pixels(wrong)
    return [
        ImageRequest(seen.names[i], pixels[k], int(seen.labels[i]), int(seen.classes[i]), images.source)
        for k, i in enumerate(wrong)
    ]
