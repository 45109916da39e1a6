"""The weights of a model in service: those before the first edit, plus the changes in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from weightsmith.delta import Delta
from weightsmith.models import Model


class Weights:
    """A model's weights as a function of the changes in force, in their order, and of nothing else.

    Changes are summed in float64 beside the originals, so that a change that is taken back leaves the very bits that were
    there without it (w + d − d would not), and a thousand small ones do not add up their rounding.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._originals: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, delta: Delta) -> None:
        """Put one more change in force."""
        for name, change in delta.changes.items():
            weight = self.model.module.get_parameter(name)
            original = self._originals.setdefault(name, weight.detach().clone())
            step = change.dense().double()
            self._sums[name] = self._sums[name] + step if name in self._sums else step
            total = self._sums[name].to(weight.device)
            moved = (original.double() + total).to(weight.dtype)
            weight.copy_(torch.where(total == 0, original, moved))  # −0.0 keeps its sign

    def set(self, deltas: Sequence[Delta]) -> None:
        """Have these changes in force and no others."""
        self._copy(self._originals)
        self._sums = {}
        for delta in deltas:
            self.add(delta)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The weights before the first edit, while the block runs."""
        now = {name: self.model.module.get_parameter(name).detach().clone() for name in self._originals}
        try:
            self._copy(self._originals)
            yield
        finally:
            self._copy(now)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.model.module.get_parameter(name).copy_(value)
