"""`Effects`: what each site was measured to do, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import read_tensors, understood, write_tensors
from weightsmith.site import Site

_FORMAT = "weightsmith-effects-1"
_RESAMPLES = 2000
_BY_SAMPLE = ("clean", "corrupted", "target_classes", "foil_classes")


@dataclass(frozen=True, eq=False)
class Effects:
    """Sites and the measured effect of each on every sample.

    Attributes:
        sites: the places measured.
        values: (samples, sites) float64 effect in the units of `metric`; NaN where a sample has no such site.
        samples: a name a sample.
        metric: what was measured, "probability" say.
        info: how it was measured (corruption, noise samples, block forwards, targets); JSON values only.
    """

    sites: tuple[Site, ...]
    values: Tensor
    samples: tuple[str, ...]
    metric: str
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.samples), len(self.sites)):
            raise WeightsmithError(
                f"effects of {len(self.samples)} samples at {len(self.sites)} sites need values of that shape, "
                f"not {tuple(self.values.shape)}"
            )

    def mean(self) -> Tensor:
        """(sites,) mean effect over samples."""
        return self.values.nanmean(0)

    def table(self) -> list[dict[str, Any]]:
        """One row a site: mean, std, standard error, 95% interval of the mean, rank (1 = largest mean).

        The interval is the percentile bootstrap over samples, all sites resampled alike (2,000 draws of one seed).
        """
        known = ~self.values.isnan()
        count = known.sum(0)
        mean = self.mean()
        squares = torch.where(known, self.values - mean, 0.0).square().sum(0)
        std = (squares / (count - 1).clamp(min=1)).sqrt()
        error = std / count.clamp(min=1).double().sqrt()
        low, high = self._intervals()
        order = torch.argsort(mean.nan_to_num(nan=-torch.inf), descending=True, stable=True).tolist()
        rank = {index: place + 1 for place, index in enumerate(order)}
        return [
            {
                "site": str(site),
                "layer": site.layer,
                "mean": float(mean[i]),
                "std": float(std[i]),
                "stderr": float(error[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "rank": rank[i],
                "n": int(count[i]),
            }
            for i, site in enumerate(self.sites)
        ]

    def _intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """(sites,) bounds of the mean. Resampling n samples with replacement is a multinomial draw of their weights."""
        count = len(self.samples)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
        values = self.values.numpy()
        known = ~np.isnan(values)
        weight = drawn @ known
        means = np.divide(drawn @ np.nan_to_num(values), weight, out=np.full_like(weight, np.nan), where=weight > 0)
        low, high = np.full((2, len(self.sites)), np.nan)
        there = known.any(0)
        if there.any():
            low[there], high[there] = np.nanquantile(means[:, there], [0.025, 0.975], axis=0)
        return low, high

    @property
    def gaps(self) -> Tensor:
        """(samples,) float64 what the corruption took from each sample: metric of the clean minus the corrupted run.

        Raises:
            WeightsmithError: effects that were not measured against a corruption.
        """
        if "clean" not in self.info or "corrupted" not in self.info:
            raise WeightsmithError(
                "these effects were measured without a corruption: they have no gap to be set against, so read `values`"
            )
        clean, corrupted = (torch.tensor(self.info[name], dtype=torch.float64) for name in ("clean", "corrupted"))
        return clean - corrupted

    def normalised(self) -> Effects:
        """Each effect as a share of its sample's gap: 0 is the corrupted run, 1 the clean one.

        Raises:
            WeightsmithError: a gap of zero.
        """
        gaps = self.gaps
        if (gaps == 0).any():
            name = self.samples[int((gaps == 0).nonzero()[0])]
            raise WeightsmithError(f"the corruption changes nothing of {name}: leave the sample out")
        return replace(self, values=self.values / gaps[:, None], info=self.info | {"normalised": True})

    def of(self, which: Sequence[int]) -> Effects:
        """The effects of some of the samples; what `info` lists sample by sample is cut with them."""
        count = len(self.samples)
        info = {
            key: [value[i] for i in which]
            if isinstance(value, list) and key in _BY_SAMPLE and len(value) == count
            else value
            for key, value in self.info.items()
        }
        samples = tuple(self.samples[i] for i in which)
        return replace(self, values=self.values[list(which)], samples=samples, info=info)

    def at(self, sites: Sequence[Site]) -> Effects:
        """The effects at some of the sites. Raises `WeightsmithError` for a site that was not measured."""
        place = {site: i for i, site in enumerate(self.sites)}
        absent = [str(site) for site in sites if site not in place]
        if absent:
            raise WeightsmithError(
                f"the effect of {absent[0]} was not measured: {did_you_mean(absent[0], map(str, self.sites))}"
            )
        return replace(self, sites=tuple(sites), values=self.values[:, [place[site] for site in sites]])

    def top(self, count: int) -> list[Site]:
        """The sites of largest mean effect, largest first. Raises `WeightsmithError` when there are fewer."""
        if not 1 <= count <= len(self.sites):
            raise WeightsmithError(f"asked for the top {count} of {len(self.sites)} sites: ask for 1 to that many")
        best = torch.argsort(self.mean().nan_to_num(nan=-torch.inf), descending=True, stable=True)[:count]
        return [self.sites[int(i)] for i in best]

    def top_layers(self, count: int) -> tuple[int, ...]:
        """The blocks of largest mean effect, in the order of the network; a window counts for its middle block."""
        best: dict[int, float] = {}
        for site, value in zip(self.sites, self.mean().tolist(), strict=True):
            if site.centre is not None and value == value:  # NaN: no sample has the site
                best[site.centre] = max(value, best.get(site.centre, -float("inf")))
        if not 1 <= count <= len(best):
            raise WeightsmithError(f"asked for the top {count} of {len(best)} layers: ask for 1 to that many")
        return tuple(sorted(sorted(best, key=lambda layer: -best[layer])[:count]))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        header = {
            "format": _FORMAT,
            "sites": [str(site) for site in self.sites],
            "samples": list(self.samples),
            "metric": self.metric,
            "info": self.info,
        }
        write_tensors(path, {"values": self.values.contiguous()}, header)

    @classmethod
    def load(cls, path: Path | str) -> Effects:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing file or another format."""
        header, tensors = read_tensors(path, _FORMAT)
        with understood(path):
            sites = tuple(Site.parse(text) for text in header["sites"])
            return cls(sites, tensors["values"], tuple(header["samples"]), header["metric"], header["info"])
