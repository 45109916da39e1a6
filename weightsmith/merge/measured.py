"""What is measured of a merge while its pieces go by: how far models lie from the base, and what rounding took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from weightsmith.merge.pieces import Piece, dot
from weightsmith.merge.storage.dtypes import Array, Kind

UNRELATED = 0.5
"""‖τ‖ / ‖w‖ above which a model was hardly fine-tuned from this base: a fine-tune was measured at 0.14, an unrelated
initialisation at 1.04."""
LOST = 0.1
"""Share of the merged change, as norms, that rounding may take before it is told."""


@dataclass
class Measured:
    """Sums of squares over all merged tensors, in float64.

    Attributes:
        models: how many.
        base: of the base's weights; changes: of each model's change.
        rounding: of what was lost where numbers were stored narrower than they were computed; narrowed: of the merged
            change in those tensors.
    """

    models: int
    base: float = 0.0
    changes: list[float] = field(default_factory=list)
    rounding: float = 0.0
    narrowed: float = 0.0

    def __post_init__(self) -> None:
        self.changes = [0.0] * self.models

    def see(self, piece: Piece) -> None:
        """Count a piece of the sources."""
        base, *changes = piece.squares
        self.base += base
        self.changes = [total + square for total, square in zip(self.changes, changes, strict=True)]

    def see_merged(self, piece: Piece, merged: Array, stored: Array, kind: Kind) -> None:
        """Count what storing a merged piece as `kind` took."""
        if stored.dtype != merged.dtype:
            change = merged - piece.base
            lost = kind.widened(stored).astype(merged.dtype, copy=False) - merged
            self.rounding += dot(lost, lost)
            self.narrowed += dot(change, change)

    def ratios(self) -> list[float]:
        """‖τ‖ / ‖w‖ of each model; infinite where the base is zero and the model is not."""
        return [math.sqrt(c / self.base) if self.base else (math.inf if c else 0.0) for c in self.changes]

    def lost(self) -> float:
        """‖what rounding took‖ / ‖merged change‖ over the tensors that were rounded."""
        return math.sqrt(self.rounding / self.narrowed) if self.narrowed else 0.0

    def notes(self, names: Sequence[str]) -> list[str]:
        """What a user must know of it, in sentences.

        Args:
            names: of the models.
        """
        found = []
        for name, ratio in zip(names, self.ratios(), strict=True):
            if ratio > UNRELATED:
                found.append(
                    f"{name} differs from the base by {ratio:.2f} of the base's norm: models fine-tuned from one base "
                    "differ far less, so it may come from another one, and then a merge destroys both"
                )
            elif ratio == 0:
                found.append(f"{name} is equal to the base in every merged tensor")
        if self.lost() > LOST:
            found.append(
                f"rounding to the numbers that are stored took {self.lost():.0%} of the merged change: --dtype float32 keeps it"
            )
        return found
