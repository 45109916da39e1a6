"""What an edge that is cut carries instead: the sender's mean, or what it writes for another image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.prune.edges.network import EdgeNetwork

CORRUPTIONS = ("mean", "swap")
"""The mean of what the sender writes over calibration images and tokens, or what it writes for another image of the set."""


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
    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(hidden (n, tokens, width), labels (n,), corrupted (n, senders, tokens, width)) by batches, in order.

        Of a mean corruption there is 1 in place of n and tokens.
        """
        size, done = self.network.batch_size(), 0
        for pixels, labels in self.images.batches(size):
            hidden = self.network.embed(pixels)
            if self.means is not None:
                corrupted = self.means[None, :, None].to(hidden)
            else:
                assert self.partners is not None
                other = self.images.pixels(self.partners[done : done + len(pixels)])
                corrupted = self.network.outputs(self.network.embed(other))
            done += len(pixels)
            yield hidden, labels.to(hidden.device), corrupted


@torch.no_grad()
def _means(network: EdgeNetwork, images: ImageSet) -> Tensor:
    """(senders, width) float64."""
    if len(images) == 0:
        raise WeightsmithError("there are no calibration images to take the senders' means over: give at least one")
    cls = int(network.model.family.cls or 0)
    total: Tensor | float = 0.0
    from_cls = network.cls_from
    for pixels, _ in images.batches(network.batch_size()):
        written = network.outputs(network.embed(pixels)).double()
        every = written[:, :from_cls].mean(2)
        total = total + torch.cat([every, written[:, from_cls:, cls]], 1).sum(0)
    return torch.as_tensor(total) / len(images)
