"""What an edge that is cut carries instead: the sender's mean, or what it writes for another image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.prune.edges.network import EdgeNetwork

CORRUPTIONS = ("mean", "swap")
"""The mean of what the sender writes over calibration images and tokens, or what it writes for another image of the set."""


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Some images of a set, and their corrupted runs.

    Attributes:
        hidden: (n, tokens, width) their embeddings; labels: (n,).
        written: (n, senders, tokens, width) what senders write in the corrupted runs; of a mean there is 1 in place of n and
            tokens.
        places: of these images in the set.
    """

    hidden: Tensor
    labels: Tensor
    written: Tensor
    places: slice


@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """Images, and what each sender writes in their corrupted runs.

    Attributes:
        means: (senders, width), of a mean corruption.
        partners: (n,) the image whose run stands for that of each, of a swap.
    """

    network: EdgeNetwork
    images: ImageSet
    means: Tensor | None = None
    partners: np.ndarray | None = None

    @classmethod
    def of(
        cls, network: EdgeNetwork, images: ImageSet, corruption: str, seed: int = 0, calibration: ImageSet | None = None
    ) -> CorruptedSet:
        """Take the means, or pair the images.

        The mean is that of a mean fold (`removed`): one vector a sender, over the tokens of all images, and from the last
        attention on over CLS alone, the only row that still reaches the classifier. With the embedding's goes the position.

        Raises:
            HeldOutError: a sealed set.
            WeightsmithError: an unknown corruption, no images, a single one to swap, or calibration for a swap.
        """
        if corruption not in CORRUPTIONS:
            raise WeightsmithError(f"corruption={corruption!r} is not known: {did_you_mean(corruption, CORRUPTIONS)}")
        images.check_open()
        if corruption == "swap":
            if len(images) < 2 or calibration is not None:
                what = f"{len(images)} images leave none" if len(images) < 2 else "calibration images are not needed"
                raise WeightsmithError(
                    f"corruption='swap' takes another image of the same set and {what}: give two images or more and no "
                    "calibration, or corruption='mean'"
                )
            order = np.random.default_rng(seed).permutation(len(images))
            partners = np.empty_like(order)
            partners[order] = np.roll(order, -1)  # one round through all images: none is its own partner
            return cls(network, images, partners=partners)
        return cls(network, images, means=_means(network, images if calibration is None else calibration))

    @torch.no_grad()
    def each(self, work: Callable[[Corrupted], T], what: str) -> Iterator[T]:
        """`work` of all images in order, as many at a time as memory holds; `what` says in words what it does."""
        fitting, size = Fitting(what), self.network.batch_size()
        for first in range(0, len(self.images), size):

            def part(which: slice, first: int = first) -> T:
                return work(self._at(slice(first + which.start, first + which.stop)))

            yield from fitting.parts(part, min(size, len(self.images) - first))

    def _at(self, places: slice) -> Corrupted:
        some = np.arange(places.start, places.stop)
        hidden = self.network.embed(self.images.pixels(some))
        if self.means is not None:
            corrupted = self.means[None, :, None].to(hidden)
        else:
            assert self.partners is not None
            corrupted = self.network.outputs(self.network.embed(self.images.pixels(self.partners[some])))
        labels = torch.from_numpy(self.images.labels[some]).to(hidden.device)
        return Corrupted(hidden, labels, corrupted, places)


@torch.no_grad()
def _means(network: EdgeNetwork, images: ImageSet) -> Tensor:
    """(senders, width) float64."""
    if len(images) == 0:
        raise WeightsmithError("there are no calibration images to take the senders' means over: give at least one")
    cls = int(network.model.family.cls or 0)
    total: Tensor | float = 0.0
    from_cls = network.cls_from

    def summed(pixels: Tensor, _labels: Tensor) -> Tensor:
        written = network.outputs(network.embed(pixels)).double()
        every = written[:, :from_cls].mean(2)
        return torch.cat([every, written[:, from_cls:, cls]], 1).sum(0)

    for some in Fitting("means are taken").each(summed, images.batches(network.batch_size())):
        total = total + some
    return torch.as_tensor(total) / len(images)
