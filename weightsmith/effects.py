"""`Effects`: what each site was measured to do, sample by sample."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, read_tensors
from weightsmith.site import Site

_FORMAT = "weightsmith-effects-1"
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class Effects:
    """Sites and the measured effect of each on every sample.

    Attributes:
        sites: the places measured.
        values: (samples, sites) float64 effect in the units of `metric`.
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
        return self.values.mean(0)

    def table(self) -> list[dict[str, Any]]:
        """One row a site: mean, std, standard error, 95% interval of the mean (normal), rank (1 = largest mean)."""
        count = len(self.samples)
        mean = self.mean()
        std = self.values.std(0) if count > 1 else torch.zeros_like(mean)
        error = std / count**0.5
        order = sorted(range(len(self.sites)), key=lambda i: -float(mean[i]))
        rank = {index: place + 1 for place, index in enumerate(order)}
        return [
            {
                "site": str(site),
                "layer": site.layer,
                "mean": float(mean[i]),
                "std": float(std[i]),
                "stderr": float(error[i]),
                "low": float(mean[i] - _NORMAL_95 * error[i]),
                "high": float(mean[i] + _NORMAL_95 * error[i]),
                "rank": rank[i],
                "n": count,
            }
            for i, site in enumerate(self.sites)
        ]

    def top(self, count: int) -> list[Site]:
        """The sites of largest mean effect, largest first. Raises `WeightsmithError` when there are fewer."""
        if not 1 <= count <= len(self.sites):
            raise WeightsmithError(f"asked for the top {count} of {len(self.sites)} sites: ask for 1 to that many")
        best = torch.argsort(self.mean(), descending=True, stable=True)[:count]
        return [self.sites[int(i)] for i in best]

    def top_layers(self, count: int) -> tuple[int, ...]:
        """The blocks of largest mean effect, in the order of the network."""
        best: dict[int, float] = {}
        for site, value in zip(self.sites, self.mean().tolist(), strict=True):
            if site.layer is not None:
                best[site.layer] = max(value, best.get(site.layer, -float("inf")))
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
        with atomic_path(path) as temporary:
            save_file({"values": self.values.contiguous()}, temporary, metadata={"weightsmith": json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> Effects:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing file or another format."""
        header, tensors = read_tensors(path, _FORMAT)
        sites = tuple(Site.parse(text) for text in header["sites"])
        return cls(sites, tensors["values"], tuple(header["samples"]), header["metric"], header["info"])
