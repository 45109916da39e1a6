"""What editors preserve, and which layers they take when nobody says."""

from __future__ import annotations

import numpy as np

from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import Model


def right_ones(model: Model, images: ImageSet) -> ImageSet:
    """The images that the model gets right. Raises `WeightsmithError` when there are none."""
    right = np.flatnonzero(predict(model, images, title="preserved images").right.numpy())
    if len(right) == 0:
        raise WeightsmithError(
            f"the model gets none of the {len(images)} images of the {images.part} part right, so there is nothing to "
            "preserve: train it first"
        )
    return images.subset(right)


def default_layers(model: Model) -> tuple[int, ...]:
    """The last three blocks ([9, 10, 11] of a ViT-B); only the last where there is no residual stream."""
    count = 3 if "resid.mid" in model.family.sites else 1
    return tuple(range(max(0, model.n_layers - count), model.n_layers))
