"""`UnitScores`: how much each removable unit matters, by one method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from weightsmith.circuit import Unit
from weightsmith.errors import WeightsmithError

_NEEDED = ("units", "values", "method")


@dataclass(frozen=True, eq=False)
class UnitScores:
    """Units of a network and what each is worth; more matters more.

    Attributes:
        units: each once.
        values: (units,) float64, in the units of the method.
        method: how they were scored, "gauss-newton" say.
        info: what it took (images, passes, seed); JSON values only.

    Raises:
        WeightsmithError: not one value a unit, a value that is not finite, or a unit twice.
    """

    units: tuple[Unit, ...]
    values: Tensor
    method: str
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        object.__setattr__(self, "values", self.values.detach().cpu().double())
        if self.values.shape != (len(self.units),):
            raise WeightsmithError(
                f"{len(self.units)} units have scores of shape {tuple(self.values.shape)}: give one score a unit"
            )
        if len(set(self.units)) != len(self.units):
            twice = next(unit for i, unit in enumerate(self.units) if unit in self.units[:i])
            raise WeightsmithError(f"the unit {twice} is scored twice: name each unit once")
        wrong = torch.nonzero(~self.values.isfinite()).flatten()
        if len(wrong):
            raise WeightsmithError(
                f"the {self.method} score of {self.units[int(wrong[0])]} is {float(self.values[int(wrong[0])])}: check that "
                "the model gives finite logits"
            )

    def by_unit(self) -> dict[Unit, float]:
        """Each unit's score."""
        return dict(zip(self.units, self.values.tolist(), strict=True))

    def of(self, units: Sequence[Unit]) -> UnitScores:
        """The scores of some of the units, in their order. Raises `WeightsmithError` for a unit without one."""
        place = {unit: i for i, unit in enumerate(self.units)}
        absent = [unit for unit in units if unit not in place]
        if absent:
            raise WeightsmithError(f"the unit {absent[0]} has no {self.method} score: score it as well")
        which = torch.tensor([place[unit] for unit in units], dtype=torch.long)
        return UnitScores(tuple(units), self.values[which], self.method, self.info)

    def order(self) -> list[Unit]:
        """The units by score, largest first; equals in the order given."""
        return [self.units[i] for i in torch.argsort(self.values, descending=True, stable=True).tolist()]

    def rank_correlation(self, other: UnitScores) -> float:
        """Spearman's correlation with scores of the same units; NaN where one of the two is constant.

        Raises:
            WeightsmithError: scores of other units.
        """
        if set(self.units) != set(other.units):
            raise WeightsmithError(
                f"{self.method} scores of {len(self.units)} units cannot be compared with {other.method} scores of other "
                "units: score the same"
            )
        theirs = other.of(self.units).values
        if any(len(values) < 2 or bool((values == values[0]).all()) for values in (self.values, theirs)):
            return math.nan
        return float(spearmanr(self.values.numpy(), theirs.numpy()).statistic)

    def rows(self) -> list[dict[str, Any]]:
        """One row a unit, for a table: unit, kind, layer, how many members, score, rank (1 matters most)."""
        rank = {unit: place + 1 for place, unit in enumerate(self.order())}
        return [
            {
                "unit": str(unit),
                "kind": unit.kind,
                "layer": unit.layer,
                "members": len(unit.members),
                "method": self.method,
                "score": score,
                "rank": rank[unit],
            }
            for unit, score in self.by_unit().items()
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `from_json` makes the same scores to the bit."""
        units = [str(unit) for unit in self.units]
        return {"units": units, "values": self.values.tolist(), "method": self.method, "info": dict(self.info)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UnitScores:
        """What `to_json` gave. Raises `WeightsmithError` for anything else."""
        try:
            names, numbers, method = (value[name] for name in _NEEDED)
            values = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
            return cls(tuple(Unit.parse(name) for name in names), values, str(method), dict(value.get("info", {})))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsmithError(
                f"these are no unit scores ({type(error).__name__}: {error}): give {', '.join(_NEEDED)}, a number a unit"
            ) from error
