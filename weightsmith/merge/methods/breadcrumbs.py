"""Model Breadcrumbs: leave out the largest and the smallest of each tensor's change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.merge.methods.arithmetic import combined
from weightsmith.merge.methods.radix import together
from weightsmith.merge.methods.registry import Blend, Method, added, fraction, method
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array


@method("breadcrumbs", "Model Breadcrumbs", "Davari and Belilovsky 2024, arXiv:2312.06795")
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Method):
    """θ = θ₀ + λ Σᵢ wᵢ mᵢ ⊙ τᵢ, where mᵢ is 0 at the ends of each tensor's magnitudes (equations 1 to 3).

    | paper | here |
    |---|---|
    | γ, right tail | `gamma`: the share of largest magnitude that is left out |
    | β, left tail | 1 − `density` − `gamma`: the share of smallest magnitude that is left out |
    | α | `scale` times the model's weight |

    Deviation: magnitudes that equal one of the two limits stay, so a little more than `density` may. Two passes more over
    each tensor.

    Attributes:
        density: share that stays; the paper's best are 0.1 to 0.15.
        gamma: share of the largest that goes; 0.01 in the paper.
    """

    density: float = 0.15
    gamma: float = 0.01

    def check(self) -> None:
        super().check()
        fraction("--density", self.density)
        if not 0 <= self.gamma < 1 or self.density + self.gamma > 1 + 1e-9:
            raise WeightsmithError(
                f"--gamma {self.gamma:g} must be a share of at least 0 that leaves room for --density {self.density:g}: "
                f"give at most {max(0.0, 1 - self.density):.3g}"
            )

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        def of(name: str) -> Blend:
            bounds = self._bounds(sources, name)

            def blend(piece: Piece) -> Array:
                changes = piece.changes()
                for change, (highest, lowest) in zip(changes, bounds, strict=True):
                    size = np.abs(change)
                    change[(size > highest) | (size < lowest)] = 0
                return added(piece, combined(changes, [self.scale * weight for weight in sources.weights]))

            return blend

        return of

    def _bounds(self, sources: Sources, name: str) -> list[list[float]]:
        """The largest and the smallest magnitude that stay of each model's change."""
        n = sources.elements(name)
        left_out = int(self.gamma * n)
        ranks = [left_out + 1, left_out + max(1, min(int(self.density * n), n - left_out))]

        def pieces() -> Iterator[Sequence[Array]]:
            for piece in sources.pieces(name):
                yield piece.changes()

        return together(pieces, [ranks] * len(sources.models), sources.computed(name))
