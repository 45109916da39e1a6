"""`ImageRequest` and `TextRequest`: one correction that somebody wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.files import read_tensors, understood, write_tensors

_FORMAT = "weightsmith-requests-1"


@dataclass(frozen=True, eq=False)
class ImageRequest:
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
            raise WeightsmithError(
                f"the target class of request {self.name} is {self.target}: classes count from 0, give one from there"
            )


@dataclass(frozen=True)
class Probe:
    """A prompt and the answer that belongs to it.

    Attributes:
        prompt: a text that the model is to go on from; answer: how it should, without the space before it.
    """

    prompt: str
    answer: str


@dataclass(frozen=True)
class TextRequest:
    """One correction of a language model: a prompt about a subject, and how the model should go on.

    Attributes:
        name: identifies the request in its file and in every table.
        prompt: the text to go on from, in which the subject stands.
        subject: its words as they stand in the prompt.
        target: the wanted answer, without the space before it.
        truth: the answer that it replaces, "" when unknown.
        paraphrases: other prompts that ask for the same.
        neighbours: prompts about other subjects with the answers that they should keep.
        source: fingerprint of the file or table that it comes from, "" when unknown.

    Raises:
        WeightsmithError: an empty prompt or target, or a subject that is not in the prompt.
    """

    name: str
    prompt: str
    subject: str
    target: str
    truth: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise WeightsmithError(
                f"the target of request {self.name} is empty: give the answer that the model should give"
            )
        if not self.subject or self.subject not in self.prompt:
            raise WeightsmithError(
                f"the subject {self.subject!r} of request {self.name} is not in its prompt {self.prompt!r}: "
                "give a prompt that names it"
            )


Request = ImageRequest | TextRequest


def duplicates_of(requests: Sequence[Request]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Requests that ask for the same, and requests that contradict each other, as pairs of positions (earlier, later).

    Both have equal prompts, letter for letter save for spaces at the ends, or equal images; equal targets make a
    repetition, different ones a contradiction. No request is the later one of two pairs.

    Returns:
        (repetitions, contradictions).
    """
    first: dict[object, int] = {}
    first_with: dict[tuple[object, object], int] = {}
    equal: list[tuple[int, int]] = []
    contradicting: list[tuple[int, int]] = []
    for position, request in enumerate(requests):
        asked, target = question_of(request)
        if (asked, target) in first_with:
            equal.append((first_with[asked, target], position))
        elif asked in first:
            contradicting.append((first[asked], position))
        first.setdefault(asked, position)
        first_with.setdefault((asked, target), position)
    return equal, contradicting


def question_of(request: Request) -> tuple[object, object]:
    """(what is asked, what is wanted): equal for requests that ask the same, whatever their names."""
    if isinstance(request, TextRequest):
        return request.prompt.strip(), request.target.strip()
    return (tuple(request.image.shape), request.image.numpy().tobytes()), request.target


def save_requests(path: Path | str, requests: Sequence[ImageRequest]) -> None:
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
    write_tensors(path, tensors, header)


def load_requests(path: Path | str) -> list[ImageRequest]:
    """Read what `save_requests` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
    header, tensors = read_tensors(path, _FORMAT)
    with understood(path):
        numbers = zip(tensors["targets"].tolist(), tensors["predicted"].tolist(), strict=True)
        return [
            ImageRequest(name, image, target, predicted, source)
            for name, source, image, (target, predicted) in zip(
                header["names"], header["sources"], tensors["images"], numbers, strict=True
            )
        ]


def stack_images(requests: Sequence[ImageRequest]) -> Tensor:
    """(n, channels, height, width) uint8: the images of all requests.

    Raises:
        WeightsmithError: no requests, or images of different size.
    """
    if not requests:
        raise WeightsmithError("there is nothing to correct: the list of requests is empty, give at least one")
    if len({tuple(request.image.shape) for request in requests}) > 1:
        raise WeightsmithError("the images of the requests differ in size: resize them to one size first")
    return torch.stack([request.image for request in requests])


def targets(requests: Sequence[ImageRequest]) -> Tensor:
    """(n,) int64: the wanted classes."""
    return torch.tensor([request.target for request in requests], dtype=torch.int64)
