"""The running sum Σ k kᵀ of one site: added to batch by batch, put aside, and taken up again with the same bits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.measure.convergence import Convergence, Look
from weightsmith.measure.kept import keep_tensors, kept_tensors
from weightsmith.site import Site

_FORMAT = "weightsmith-moment-partial-2"
_BLOCK = 1024
"""Keys whose products are summed in float32 before they join the float64 sum: within 2e-7 of float64 all the way (relative,
Frobenius, 3,072-wide normal or GELU keys), at a third of its time."""

_STRIP = 512
"""Columns of the sum that are computed at a time: what lies left of the diagonal strip is known by symmetry."""

_log = logging.getLogger(__name__)


class RunningSum:
    """Σ k kᵀ over the samples read so far; float64, with products of float32 keys taken in float32 over short blocks.

    Attributes:
        site: where the keys are read.
        samples: samples read, all of whose keys are in the sum.
        count: keys read.
        last: the last look of a convergence rule, if one looks.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.samples = 0
        self.count = 0
        self.last: Look | None = None
        self._total: Tensor | None = None  # (d, d) float64, right above the diagonal strips only
        self._whole = True

    def add(self, keys: Tensor, samples: int) -> None:
        """Add the keys (..., d) of that many samples.

        Raises:
            WeightsmithError: a key that is no finite number, or one too large to be squared.
        """
        keys = keys.flatten(0, -2)
        keys = keys if keys.dtype == torch.float64 else keys.float()
        if not bool(keys.sum().isfinite()):
            raise WeightsmithError(
                f"the keys at {self.site} hold NaN or infinity: check the model's weights, and load it in float32 if it is "
                "in half precision"
            )
        self._whole = False  # an interrupt from here on would leave a sum that nobody can go on from
        if self._total is None:
            self._total = torch.zeros(keys.shape[1], keys.shape[1], dtype=torch.float64, device=_summed_on(keys))
        self._total = self._total.to(_summed_on(keys))
        _add_products(self._total, keys)
        if not bool(self._total.diagonal().isfinite().all()):
            raise WeightsmithError(
                f"the keys at {self.site} are too large to be squared in float32: load the model in float64"
            )
        self.count += len(keys)
        self.samples += samples
        self._whole = True

    def join(self, other: RunningSum) -> None:
        """Add what another process has summed over samples of its own, at the same site."""
        if other._total is None:
            return
        self._whole = False
        self._total = other._total if self._total is None else self._total.add_(other._total.to(self._total.device))
        self.count += other.count
        self.samples += other.samples
        self._whole = True

    @property
    def width(self) -> int:
        """Entries of a key; 0 before one was read."""
        return 0 if self._total is None else len(self._total)

    def matrix(self) -> Tensor:
        """(d, d) float64 on the CPU, symmetric to the bit: the mean of k kᵀ."""
        assert self._total is not None
        upper = self._total.cpu().triu()
        return (upper + upper.triu(1).mT) / self.count

    def converged(self, until: Convergence) -> bool:
        """Look at the sum when that is due; whether it has converged."""
        assert self._total is not None
        if self.count < until.due(self.last, len(self._total)):
            return False
        self.last = until.look(self.matrix(), self.count, self.last)
        return until.passed(self.last)

    def save(self, path: Path) -> None:
        """Put the sum aside, atomically; nothing where nothing was read, or where an addition was interrupted."""
        if self._total is None or not self._whole:
            return
        header: dict[str, Any] = {"site": str(self.site), "samples": self.samples, "count": self.count, "look": None}
        tensors = {"total": self._total.cpu()}
        if self.last is not None:
            tensors["basis"] = self.last.basis
            header["look"] = {key: value for key, value in vars(self.last).items() if key != "basis"}
        keep_tensors(path, tensors, {"format": _FORMAT} | header)

    @classmethod
    def load(cls, path: Path, site: Site, samples: int, batch_size: int) -> RunningSum:
        """The sum put aside at `path`, or an empty one; a damaged file is told and removed.

        Args:
            samples: of the whole set. batch_size: sums are put aside between batches.
        """
        fresh = cls(site)
        if not path.exists():
            return fresh
        try:
            header, tensors = kept_tensors(path, _FORMAT)
            found, total = cls(site), tensors["total"]
            found.samples, found.count, found._total = int(header["samples"]), int(header["count"]), total
            if header["look"] is not None:
                found.last = Look(basis=tensors["basis"], **header["look"])
            between = found.samples % batch_size == 0 or found.samples >= samples - 1
            square = total.ndim == 2 and total.shape[0] == total.shape[1] and total.dtype == torch.float64
            if header["site"] != str(site) or not (square and between and 0 < found.samples <= samples):
                raise WeightsmithError(f"{path} is not the sum of {site} over these samples")
            if found.count < 1 or not bool(total.isfinite().all()):
                raise WeightsmithError(f"{path} holds numbers that are no sum of keys")
        except (WeightsmithError, KeyError, TypeError, ValueError) as error:
            _log.warning("key statistics put aside are started anew: %s", error)
            path.unlink(missing_ok=True)
            return fresh
        return found


def _summed_on(keys: Tensor) -> torch.device:
    return torch.device("cpu") if keys.device.type == "mps" else keys.device  # MPS has no float64


def _add_products(total: Tensor, keys: Tensor) -> None:
    """Add Σ k kᵀ of keys (n, d) to the diagonal strips of `total` (d, d) and what lies right of them."""
    with _whole_float32():
        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            for first in range(0, keys.shape[1], _STRIP):
                strip = slice(first, first + _STRIP)
                total[strip, first:].add_((block[:, strip].mT @ block[:, first:]).to(total.device))


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of float32 in float32, also where a user allows TF32 or bfloat16 inside them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
