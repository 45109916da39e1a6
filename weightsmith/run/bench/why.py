"""Why a classifier says what it says of one image: what carries the decision, where it looks, what is alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise
from weightsmith.data.images import ImageSet
from weightsmith.data.split import sample
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.locate import cls_attention, error_cases, grids, sweep
from weightsmith.measure.predictions import BATCH
from weightsmith.models import Model, record
from weightsmith.report import attention_maps, token_maps
from weightsmith.request import ImageRequest
from weightsmith.run.bench.session import Session
from weightsmith.site import Site

_LAYERS = 4
"""Layers whose map is drawn at most."""

_WORK = {"cpu": 2e12}
"""Multiplications that a map may take by kind of device, which is half a minute or less."""
_WORK_ELSEWHERE = 1e14

_ALIKE = 2000
"""Training images among which the nearest are looked for at most."""


@dataclass(frozen=True, eq=False)
class Map:
    """A picture over an image, and what it shows in words for those who cannot see it."""

    figure: Figure
    words: str


@dataclass(frozen=True)
class Neighbour:
    """A training image that the classifier reads alike.

    Attributes:
        position: in the training images that were looked through; label: its class.
        likeness: cosine between what enters the classifier for both, at most 1.
    """

    position: int
    label: int
    likeness: float


class Reasons:
    """Why, for the images of one session."""

    def __init__(self, session: Session) -> None:
        self._session, self._model = session, session.model

    @cached_property
    def training(self) -> ImageSet:
        """The training images that are looked through, drawn at random where there are many."""
        job = self._session.held.job
        return sample(job.part("train"), _ALIKE, job.options.seed)

    def trace(self, index: int, wanted: int) -> Map:
        """Effect of every patch at a few layers on the decision between what the model says and the wanted class.

        Noise is put on the patches, single activations are restored, and what comes back is measured (`locate.sweep`). Of a
        large model stretches of patches are restored together, so that it takes no longer than a person waits.

        Raises:
            WeightsmithError: a model without patches.
        """
        with self._session.locked():
            model = self._model
            side, special = _grid(model), model.family.special
            given, foil = self._pair(index, wanted)
            seen = self._session.picture(index)
            request = ImageRequest(seen.name, self._session.pixels(index), foil, given)
            block, samples = _affordable(model)
            cases = error_cases(model, [request], EmbeddingNoise(3.0, samples, self._session.held.job.options.seed))
            last = max(model.n_layers - 2, 0)  # what patches say behind the last block nothing reads
            layers = sorted({round(last * step / max(_LAYERS - 1, 1)) for step in range(_LAYERS)})
            sites = [site for site in grids.tokens(model, "resid.out", block) if site.layer in layers]
            found = sweep(model, cases, sites, metrics=["logit_difference"], min_gap=0.0, title="tracing")
            effects = found.effects("logit_difference")
        names = self._session.class_names
        title = f"{names[given]} rather than {names[foil]}"
        pixels = request.image.numpy()[None]
        figure = token_maps(effects, pixels, (side, side), special, layers=layers, names=[seen.name])
        together = f" Stretches of {block} patches were restored together." if block > 1 else ""
        return Map(figure, f"{_largest(effects, side, special, title)}{together}")

    def attention(self, index: int) -> Map:
        """Where CLS looks in the last block with attention, and what reaches it through all blocks.

        Raises:
            WeightsmithError: a model without CLS or attention.
        """
        with self._session.locked():
            model = self._model
            pixels = self._session.pixels(index)
            seen = cls_attention(model, model.preprocess(pixels[None], model.device))
        side = _grid(model)
        last, flow = seen.by_layer[0, -1], seen.rollout[0]
        maps = {f"block {seen.layers[-1]}\n": last.numpy(), "through all blocks\n(rollout)": flow.numpy()}
        places = [_place(int(i), side) for i in flow.topk(min(3, len(flow))).indices]
        figure = attention_maps(pixels.numpy(), maps, (side, side))
        return Map(figure, f"Most of what reaches the decision comes from the patches at {', '.join(places)}.")

    def nearest(self, index: int, count: int = 6) -> list[Neighbour]:
        """The training images that the unedited classifier reads most alike, the most alike first."""
        with self._session.locked(), self._session.stream.unedited():
            stored = self._features
            own = _features(self._model, self._session.pixels(index)[None])
        likeness = (stored @ own[0]).clamp(-1, 1)
        found = likeness.topk(min(count, len(stored)))
        labels = self.training.labels
        return [
            Neighbour(place, int(labels[place]), value)
            for place, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    @cached_property
    def _features(self) -> Tensor:
        pieces = [_features(self._model, pixels) for pixels, _ in self.training.batches(BATCH)]
        return torch.cat(pieces)

    def _pair(self, index: int, wanted: int) -> tuple[int, int]:
        """What the model says, and the wanted class; where it says that, the next likely one."""
        ranked = [label for label, _ in self._session.likely(index, 2)]
        given = ranked[0]
        return given, wanted if wanted != given else ranked[-1]


def _features(model: Model, pixels: Tensor) -> Tensor:
    """(n, width) what enters the classifier, each of length 1."""
    site: Site = model.lookup("classifier.key")
    with torch.no_grad():
        seen = record(model, model.preprocess(pixels, model.device), [site])[site]
    return F.normalize(seen.flatten(1).float(), dim=1).cpu()


def _grid(model: Model) -> int:
    """Patches along a side of the image. Raises `WeightsmithError` where there are none."""
    count = model.n_tokens - model.family.special
    if not model.family.has_tokens or count < 1:
        raise WeightsmithError(f"{model.name} is a {model.family.title}, which has no patches to draw a map over")
    return math.isqrt(count)


def _affordable(model: Model) -> tuple[int, int]:
    """(patches restored together, noise samples) with which a map takes no more work than it may."""
    side, tokens, layers = _grid(model), model.n_tokens, min(_LAYERS, model.n_layers)
    weights = sum(p.numel() for p in model.module.get_submodule(model.family.blocks).parameters())
    work = _WORK.get(model.device.type, _WORK_ELSEWHERE)
    blocks = [size for size in range(1, side + 1) if side % size == 0]  # stretches that end with their row
    for samples, block in [(8, 1), (4, 1), (2, 1), *((2, size) for size in blocks[1:]), (1, side)]:
        if layers * (side * side / block) * samples * tokens * weights / 2 <= work:
            return block, samples
    return side, 1


def _largest(effects: Effects, side: int, special: int, title: str) -> str:
    """The three largest effects in words."""
    values = effects.values[0]
    told = []
    for place in values.abs().argsort(descending=True).tolist():
        site = effects.sites[place]
        if not isinstance(site.tokens, tuple) or site.tokens[0] < special:
            continue
        told.append(f"{_place(site.tokens[0] - special, side)} at layer {site.layer} ({float(values[place]):+.2g})")
        if len(told) == 3:
            break
    return f"Blue patches speak for {title}, orange ones against it. Largest: {'; '.join(told)}."


def _place(patch: int, side: int) -> str:
    return f"row {patch // side + 1}, column {patch % side + 1}"
