"""Images to look at: those that were edited, and held-out ones that an edit repaired or broke, with what was said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data import seal
from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta
from weightsmith.evaluate.editing import EditReport
from weightsmith.files import read_tensors, understood, write_tensors
from weightsmith.models import Model
from weightsmith.request import ImageRequest, stack_images, targets

_FORMAT = "weightsmith-examples-1"
KINDS = ("edited", "repaired", "broken")
"""What examples are of: what was asked for, and what it did to images that were not asked about."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Images of one kind under one edit.

    Attributes:
        kind: one of `KINDS`; method: the editor; part: where the images come from, "" of edited ones.
        total: how many images of the kind there are; those below may be fewer.
        names: one an image; labels: (n,) the right classes.
        images: (n, channels, height, width) uint8; none of edited ones, which the requests hold.
        before, after: (n, classes) float32 class probabilities.
    """

    kind: str
    method: str
    part: str
    total: int
    names: tuple[str, ...]
    labels: Tensor
    images: Tensor | None
    before: Tensor
    after: Tensor


def examples(
    model: Model,
    requests: Sequence[ImageRequest],
    held_out: ImageSet,
    delta: Delta,
    report: EditReport,
    *,
    method: str,
    part: str,
    most: int = 24,
) -> list[Examples]:
    """The edited images, and at most `most` held-out ones of each kind: those whose answer was surest.

    Args:
        report: of the same edit on the same held-out images.
    """
    asked, wanted = stack_images(requests), targets(requests)
    before = _probabilities(model, asked)
    with delta.on(model):
        after = _probabilities(model, asked)
    names = tuple(request.name for request in requests)
    found = [Examples("edited", method, "", len(requests), names, wanted, None, before, after)]
    was, now = report.before.right, report.after.right
    for kind, places in (("repaired", ~was & now), ("broken", was & ~now)):
        which = torch.nonzero(places).flatten()
        sure = report.after.probabilities[which].max(-1).values
        shown = which[sure.argsort(descending=True, stable=True)[:most]].sort().values
        with seal.evaluation():
            pixels = held_out.pixels(shown.numpy()) if len(shown) else None
        found.append(
            Examples(
                kind,
                method,
                part,
                len(which),
                tuple(report.before.names[place] for place in shown.tolist()),
                report.before.labels[shown],
                pixels,
                report.before.probabilities[shown].float(),
                report.after.probabilities[shown].float(),
            )
        )
    return found


def save_examples(path: Path | str, found: Sequence[Examples]) -> None:
    """Write examples to one safetensors file, atomically."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for place, one in enumerate(found):
        entries.append({name: getattr(one, name) for name in ("kind", "method", "part", "total", "names")})
        given = {"labels": one.labels, "before": one.before, "after": one.after, "images": one.images}
        tensors |= {f"{place}.{name}": tensor.contiguous() for name, tensor in given.items() if tensor is not None}
    write_tensors(path, tensors, {"format": _FORMAT, "entries": entries})


def load_examples(path: Path | str) -> list[Examples]:
    """Read what `save_examples` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
    header, tensors = read_tensors(Path(path), _FORMAT)
    with understood(path, "run --stage eval again"):
        return [
            Examples(
                **{**entry, "names": tuple(entry["names"])},
                images=tensors.get(f"{place}.images"),
                **{name: tensors[f"{place}.{name}"] for name in ("labels", "before", "after")},
            )
            for place, entry in enumerate(header["entries"])
        ]


@torch.no_grad()
def _probabilities(model: Model, pixels: Tensor, batch: int = 256) -> Tensor:
    def asked(some: Tensor) -> Tensor:
        return model.logits(model.preprocess(some, model.device)).float().softmax(-1).cpu()

    return torch.cat(list(Fitting("examples are asked").each(asked, ((some,) for some in torch.split(pixels, batch)))))
