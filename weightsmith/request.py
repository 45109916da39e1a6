"""`Request`: one correction that somebody wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, read_tensors

_FORMAT = "weightsmith-requests-1"


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


def save_requests(path: Path | str, requests: Sequence[Request]) -> None:
    """Write requests to one safetensors file, atomically."""
    header = {
        "format": _FORMAT,
        "names": [request.name for request in requests],
        "sources": [request.source for request in requests],
    }
    tensors = {
        "images": stack_images(requests),
        "targets": targets(requests),
        "predicted": torch.tensor([request.predicted for request in requests], dtype=torch.int64),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"weightsmith": json.dumps(header)})


def load_requests(path: Path | str) -> list[Request]:
    """Read what `save_requests` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
    header, tensors = read_tensors(path, _FORMAT)
    numbers = zip(tensors["targets"].tolist(), tensors["predicted"].tolist(), strict=True)
    return [
        Request(name, image, target, predicted, source)
        for name, source, image, (target, predicted) in zip(
            header["names"], header["sources"], tensors["images"], numbers, strict=True
        )
    ]


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
