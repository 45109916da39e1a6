"""TIES: trim each task's change, elect a sign for every weight, and average those that agree with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.merge.methods.radix import together
from weightsmith.merge.methods.registry import Blend, Method, added, fraction, method
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array


@method("ties", "TIES-Merging", "Yadav et al. 2023, arXiv:2306.01708")
@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """θ = θ₀ + λ mean of the trimmed τᵢ that have the elected sign (algorithm 1).

    | paper | here |
    |---|---|
    | k, "top-k%" | `density`: of each task's change over all merged tensors, the share of largest magnitude stays |
    | τ̂ₜ | a change in which the others are 0 |
    | γ_m = sgn(Σₜ τ̂ₜ) | sign of Σ wᵢ τ̂ᵢ |
    | A^p | the models i with wᵢ τ̂ᵢ of that sign |
    | λ | `scale` |

    With weights the mean is Σ wᵢ τ̂ᵢ / Σ |wᵢ| over those that agree: equal positive weights give the paper's mean, and a
    negative weight takes its task away, which it would not with Σ wᵢ below the line. So weights count against each other,
    and λ says how far to go. Deviations: at least one element of a task stays; where Σ wᵢ τ̂ᵢ is 0 nothing is added (the
    authors' code takes the sign of the majority of all elements). Elements that are as large as the smallest kept one are
    all kept. The threshold is exact: two passes over all tensors (four for float64) before the one that merges.

    Attributes:
        density: share that stays, 0.2 in the paper.
    """

    density: float = 0.2

    def check(self) -> None:
        super().check()
        fraction("--density", self.density)

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        limits = thresholds(sources, self.density)

        def blend(piece: Piece) -> Array:
            trimmed = piece.changes()
            for change, limit in zip(trimmed, limits, strict=True):
                change[np.abs(change) < limit] = 0
            return agreed(piece, trimmed, sources.weights, self.scale)

        return lambda _: blend


def thresholds(sources: Sources, density: float) -> list[float]:
    """The smallest magnitude of each model's change, over all tensors, that is among the share `density` of largest ones."""
    total = sum(sources.elements(name) for name in sources.names)
    rank = max(1, int(density * total))
    wide = "f8" if any(sources.computed(name) == "f8" for name in sources.names) else "f4"

    def pieces() -> Iterator[Sequence[Array]]:
        for name in sources.names:
            for piece in sources.pieces(name):
                yield [change.astype(wide, copy=False) for change in piece.changes()]

    return [series[0] for series in together(pieces, [[rank]] * len(sources.models), wide)]


def agreed(piece: Piece, changes: Sequence[Array], weights: Sequence[float], scale: float) -> Array:
    """θ₀ + λ Σ wᵢ τᵢ / Σ |wᵢ| over the models whose wᵢ τᵢ has the sign of the sum; writes over the changes."""
    kind = piece.base.dtype.type
    for change, weight in zip(changes, weights, strict=True):
        np.multiply(change, kind(weight), out=change)
    total = changes[0].copy()
    for change in changes[1:]:
        total += change
    sign = np.sign(total, out=total)
    mixed, share = np.zeros_like(piece.base), np.zeros_like(piece.base)
    for change, weight in zip(changes, weights, strict=True):
        agrees = np.sign(change) == sign
        agrees &= sign != 0
        np.add(mixed, change, out=mixed, where=agrees)
        np.add(share, kind(abs(weight)), out=share, where=agrees)
    np.divide(mixed, share, out=mixed, where=share > 0)
    if scale != 1:
        np.multiply(mixed, kind(scale), out=mixed)
    return added(piece, mixed)
