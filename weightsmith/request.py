"""`Request`: one correction that somebody wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError


@dataclass(frozen=True, eq=False)
class Request:
    """One correction of an image classifier: an image and the class that the model should give it.

    Attributes:
        name: identifies the image, `part/position`.
        image: (channels, height, width) uint8, as the data set holds it.
        target: the wanted class.
        predicted: the class that the model gave when the request was made.
        source: fingerprint of the data set that the image comes from, "" when unknown.
    """

    name: str
    image: Tensor
    target: int
    predicted: int
    source: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.dtype != torch.uint8:
            raise WeightsmithError(
                f"the image of request {self.name} must be (channels, height, width) uint8, "
                f"not {tuple(self.image.shape)} {self.image.dtype}"
            )
        if self.target < 0:
            raise WeightsmithError(f"the target class of request {self.name} is {self.target}: classes count from 0")


def stack_images(requests: Sequence[Request]) -> Tensor:
    """(n, channels, height, width) uint8: the images of all requests.

    Raises:
        WeightsmithError: no requests, or images of different size.
    """
    if not requests:
        raise WeightsmithError("there is nothing to correct: the list of requests is empty")
    if len({tuple(request.image.shape) for request in requests}) > 1:
        raise WeightsmithError("the images of the requests differ in size: resize them to one size first")
    return torch.stack([request.image for request in requests])


def targets(requests: Sequence[Request]) -> Tensor:
    """(n,) int64: the wanted classes."""
    return torch.tensor([request.target for request in requests], dtype=torch.int64)
