"""Steering away from what the evidence of an image says: ASTRA's second and third step (`astra` has the first, and the
paper), for image classifiers.

2. `steering_vectors`: v = mean over images of h(image) − h(image without its evidence), at every block l.
3. `Steering.on`: h ← h − s · ‖h‖ · clip(cos(h − h₀, v), 0, 1) · v/‖v‖.

| paper | here |
|---|---|
| steering vector, v^l | `Steering.vectors` |
| calibration activation, h₀^l | `Steering.centres` |
| steering coefficient, α | `strength` (`AstraOptions.alpha` is the Lasso's penalty) |

Deviations. The images are natural errors, not attacks, so v mixes classes where the targets are mixed: attribute and
steer by target class if it matters. h is read and steered at CLS, where the paper takes the last token of the prompt and
then every token that is generated. An image without a patch of positive weight is left out of v, which it would only
shorten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import read_tensors, understood, write_tensors
from weightsmith.locate.astra import Attribution, PatchGrid, checked_classes
from weightsmith.models import Model, patch, record
from weightsmith.progress import progress
from weightsmith.site import Site

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Steering strengths that `steered` tries, as shares of ‖h‖."""
TOKENS = ("cls", "patches")

_FORMAT = "weightsmith-steering-1"


@dataclass(frozen=True, eq=False)
class Steering:
    """Directions in the residual stream that carry evidence for the attributed classes, and how to move against them.

    Attributes:
        layers: blocks whose output was measured.
        vectors: v, (layers, width), from the blacked-out towards the full images.
        centres: h₀, (layers, width), mean over the calibration images.
        tokens: where h is read and steered: "cls", or "patches" (v and h₀ are means over them, each is steered by itself).
        info: how it was measured; JSON values only.
    """

    layers: tuple[int, ...]
    vectors: Tensor
    centres: Tensor
    tokens: str = "cls"
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.layers) or self.centres.shape != self.vectors.shape:
            raise WeightsmithError(
                f"steering of {len(self.layers)} layers needs vectors and centres (layers, width), "
                f"not {tuple(self.vectors.shape)} and {tuple(self.centres.shape)}"
            )
        _check_tokens(self.tokens)

    def site(self, layer: int) -> Site:
        """Where h is read and steered in a block. Raises `WeightsmithError` for a block without a vector."""
        if layer not in self.layers:
            raise WeightsmithError(
                f"--layers names layer {layer}: there are steering vectors of {_listed(self.layers)}"
            )
        return Site("resid.out", layer, tokens=self.tokens)

    def moved(self, hidden: Tensor, layer: int, strength: float) -> Tensor:
        """Steered activations h − s · ‖h‖ · clip(cos(h − h₀, v), 0, 1) · v/‖v‖; h itself where the cosine is not positive.

        Args:
            hidden: h (..., width) at `site(layer)`.
            strength: s, 0 or more; at 1 an activation that points along v from h₀ loses its own length along v.

        Raises:
            WeightsmithError: a block without a vector, another width, a strength below 0 or not finite.
        """
        self.site(layer)
        if not (strength >= 0 and math.isfinite(strength)):
            raise WeightsmithError(f"--strengths must be numbers from 0, not {strength:g}: give `0.5 1 2` say")
        if hidden.shape[-1] != self.vectors.shape[1]:
            raise WeightsmithError(
                f"the steering vectors have width {self.vectors.shape[1]} and the model {hidden.shape[-1]}: "
                "measure them on this model"
            )
        if strength == 0:
            return hidden
        h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # half precision has no digits for a cosine
        place = self.layers.index(layer)
        v, centre = (tensor[place].to(h) for tensor in (self.vectors, self.centres))
        cosine = F.cosine_similarity(h - centre, v, dim=-1)[..., None].clamp(0, 1)
        step = strength * h.norm(dim=-1, keepdim=True) * cosine * F.normalize(v, dim=0)
        return torch.where(cosine > 0, h - step, h).to(hidden.dtype)

    @contextmanager
    def on(self, model: Model, layer: int, strength: float) -> Iterator[None]:
        """Steer every forward pass inside the block at one layer; the model itself stays as it is.

        Raises:
            WeightsmithError: as `moved`; a layer or tokens that the model has not; no pass inside the block.
        """
        with patch(model, {self.site(layer): lambda hidden: self.moved(hidden, layer, strength)}):
            yield

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        header = {"format": _FORMAT, "layers": list(self.layers), "tokens": self.tokens, "info": self.info}
        tensors = {"vectors": self.vectors.contiguous(), "centres": self.centres.contiguous()}
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> Steering:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        header, tensors = read_tensors(path, _FORMAT)
        with understood(path):
            return cls(
                tuple(header["layers"]), tensors["vectors"], tensors["centres"], header["tokens"], header["info"]
            )


@torch.no_grad()
def steering_vectors(
    model: Model,
    images: Tensor,
    attribution: Attribution,
    calibration: Tensor,
    layers: Sequence[int] | None = None,
    tokens: str = "cls",
    batch: int = 64,
) -> Steering:
    """Steering vectors and centres of the residual stream behind each block (module docstring, 2).

    Args:
        images: (n, channels, height, width) uint8, the attributed ones in the same order.
        calibration: (m, channels, height, width) uint8, images as the model usually meets them; right ones, say.
        layers: blocks; None takes all.
        tokens: "cls" or "patches".

    Raises:
        WeightsmithError: images that are not the attributed ones, no calibration images, no image with evidence, a layer
            or tokens that there are not, a model without patch tokens.
    """
    grid = PatchGrid.of(model)
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    model.check_layers(chosen, "--layers")
    _check_tokens(tokens)
    _check_batch(batch)
    if len(images) != len(attribution.samples) or grid.patches != attribution.weights.shape[1]:
        raise WeightsmithError(
            f"the attribution is of {len(attribution.samples)} images with {attribution.weights.shape[1]} patches, and "
            f"{len(images)} with {grid.patches} were given: give the images and the model that were attributed"
        )
    if len(calibration) == 0:
        raise WeightsmithError(
            "there are no calibration images to centre activations on: give some that the model gets right"
        )
    used = [place for place, patches in enumerate(attribution.top) if patches]
    if not used:
        raise WeightsmithError(
            "no patch of any image speaks for its target class, so there is nothing to steer away from: "
            "give more --masks or a smaller --alpha"
        )
    keep = torch.ones(len(used), grid.patches, dtype=torch.bool)
    for row, place in enumerate(used):
        keep[row, list(attribution.top[place])] = False
    sites = [Site("resid.out", layer, tokens=tokens) for layer in chosen]
    changes: list[Tensor] = []
    means: list[Tensor] = []
    with progress("steering vectors", len(used) + len(calibration)) as advance:
        for rows in torch.split(torch.arange(len(used)), batch):
            inputs = model.preprocess(images[[used[row] for row in rows.tolist()]], model.device)
            without = grid.blackened(inputs, keep[rows])
            changes.append(_streams(model, inputs, sites) - _streams(model, without, sites))
            advance(len(rows))
        for pixels in torch.split(calibration, batch):
            means.append(_streams(model, model.preprocess(pixels, model.device), sites))
            advance(len(pixels))
    info = {
        "model": model.name,
        "samples": [attribution.samples[place] for place in used],
        "calibration_images": len(calibration),
        "attribution": attribution.info,
    }
    return Steering(
        layers=chosen,
        vectors=(torch.stack(changes).sum(0) / len(used)).float(),
        centres=(torch.stack(means).sum(0) / len(calibration)).float(),
        tokens=tokens,
        info=info,
    )


@torch.no_grad()
def steered(
    model: Model,
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    steering: Steering,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    batch: int = 64,
) -> list[dict[str, Any]]:
    """What steering does to images at every layer and strength; choose both on validation images, right and wrong ones.

    The pass without steering is made once; each setting restarts behind its own layer, with the result of `Steering.on`.

    Args:
        images: (n, channels, height, width) uint8.
        targets: (n,) the classes to steer away from; labels: (n,) the right ones.
        layers: blocks; None takes all that there are vectors of.
        strengths: s, of each layer in turn.

    Returns:
        One row a layer and strength: layer, strength, target_probability (mean), target_share (of images that are given
        their target class), accuracy (share given their label), n.

    Raises:
        WeightsmithError: no images, targets or labels that do not fit them, a layer without vectors, a bad strength.
    """
    targets = checked_classes(model, images, targets, "targets")
    labels = checked_classes(model, images, labels, "labels")
    chosen = steering.layers if layers is None else tuple(layers)
    model.check_layers(chosen, "--layers")
    _check_batch(batch)
    if not strengths:
        raise WeightsmithError("--strengths names no strength: give at least one number from 0")
    bounds = [model.bind(steering.site(layer)) for layer in chosen]
    streams = [Site("resid.out", layer) for layer in chosen]
    sums = torch.zeros(len(chosen), len(strengths), 3, dtype=torch.float64)
    with progress("steering", len(images)) as advance:
        for rows in torch.split(torch.arange(len(images)), batch):
            runs = record(model, model.preprocess(images[rows], model.device), streams)
            for i, layer in enumerate(chosen):
                stream = runs[streams[i]]
                for j, strength in enumerate(strengths):
                    new = steering.moved(bounds[i].read(stream), layer, strength)
                    logits = model.run_from(layer + 1, bounds[i].write(stream, new)).float().cpu()
                    sums[i, j] += _scores(logits, targets[rows], labels[rows])
            advance(len(rows))
    means = (sums / len(images)).tolist()
    return [
        {
            "layer": layer,
            "strength": float(strength),
            "target_probability": means[i][j][0],
            "target_share": means[i][j][1],
            "accuracy": means[i][j][2],
            "n": len(images),
        }
        for i, layer in enumerate(chosen)
        for j, strength in enumerate(strengths)
    ]


def _streams(model: Model, inputs: Tensor, sites: Sequence[Site]) -> Tensor:
    """(sites, width) float64 sum over images of each site's mean over its tokens."""
    run = record(model, inputs, sites)
    return torch.stack([run[site].cpu().double().mean(1).sum(0) for site in sites])


def _scores(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """(3,) float64 sums over images: probability of the target, target given, label given."""
    given = logits.argmax(-1)
    probability = logits.double().softmax(-1).gather(1, targets[:, None])
    return torch.stack([probability.sum(), (given == targets).sum(), (given == labels).sum()])


def _check_tokens(tokens: str) -> None:
    if tokens not in TOKENS:
        raise WeightsmithError(f"--tokens {tokens} cannot be steered: {did_you_mean(str(tokens), TOKENS)}")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise WeightsmithError(f"--batch must be at least 1, not {batch}: give 64 say")


def _listed(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer) for layer in layers)}"
