"""Mean and covariance of the keys at every place where something can be removed, in one pass over calibration images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure.sums import RunningSum
from weightsmith.models import Model
from weightsmith.models.hooks import record_until
from weightsmith.progress import progress
from weightsmith.site import Site

KINDS = ("attn.z", "mlp.key")
"""The keys of the attention's output projection and of the MLP's down-projection."""

_BATCH_TOKENS = 2048
"""In a pass, so that activations stay in memory that is at hand."""


@dataclass(frozen=True, eq=False)
class KeyStatistic:
    """Of the keys at one site.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64, centred.
        count: number of keys.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def mixed(self, other: KeyStatistic, weight: float) -> KeyStatistic:
        """Of a population that consists to `weight` of the other's keys and for the rest of these."""
        apart = other.mean - self.mean
        within = (1 - weight) * self.covariance + weight * other.covariance
        between = weight * (1 - weight) * torch.outer(apart, apart)
        return KeyStatistic(self.mean + weight * apart, within + between, self.count)


@dataclass(frozen=True, eq=False)
class KeyStatistics:
    """Of the keys of one network.

    Attributes:
        by_site: for every attention and MLP the keys of all tokens, and `@cls` those of CLS alone.
        fingerprint: of the network.
    """

    by_site: Mapping[Site, KeyStatistic]
    fingerprint: str

    def at(self, kind: str, layer: int, cls_weight: float) -> KeyStatistic:
        """Of one place's keys, CLS given the weight `cls_weight` in [0, 1] over its share among all tokens."""
        every = Site(kind, layer)
        return self.by_site[every].mixed(self.by_site[every.at("cls")], cls_weight)


@torch.no_grad()
def key_statistics(model: Model, images: ImageSet, batch_size: int | None = None) -> KeyStatistics:
    """Mean and covariance of the keys of every attention output and MLP down-projection over images.

    One pass; products of float32 keys are taken in float32 over short blocks and summed in float64 (see `measure.sums`),
    those of float64 keys in float64.

    Args:
        batch_size: images in a pass; None takes as many as hold about 2,048 tokens.

    Raises:
        HeldOutError: the set is sealed.
        WeightsmithError: no images, or keys that are no finite numbers.
    """
    images.check_open()
    if len(images) == 0:
        raise WeightsmithError("there are no calibration images to fold with: give at least one, or fold none")
    cls = model.family.cls
    assert cls is not None
    sites = [Site(kind, layer) for kind in KINDS for layer in range(model.n_layers) if model.has(kind, layer)]
    sums = {place: RunningSum(place) for site in sites for place in (site, site.at("cls"))}
    dtype = next(model.module.parameters()).dtype
    size = batch_size or max(1, _BATCH_TOKENS // max(1, model.n_tokens))

    def read(pixels: Tensor, _labels: Tensor) -> dict[Site, Tensor]:
        return record_until(model, model.preprocess(pixels, model.device).to(dtype), sites)

    with progress("key statistics", len(images)) as advance:
        for seen in Fitting("key statistics are taken").each(read, images.batches(size)):
            count = len(seen[sites[0]])
            for site in sites:
                keys = seen.pop(site)
                # The mean is the moment with a further key that is always 1.
                with_one = torch.cat([keys, torch.ones_like(keys[..., :1])], -1)
                sums[site].add(with_one, count)
                sums[site.at("cls")].add(with_one[:, cls], count)
            advance(count)
    return KeyStatistics({site: _statistic(one) for site, one in sums.items()}, model.fingerprint())


def _statistic(running: RunningSum) -> KeyStatistic:
    moment = running.matrix()
    mean = moment[:-1, -1].clone()
    return KeyStatistic(mean, moment[:-1, :-1] - torch.outer(mean, mean), running.count)
