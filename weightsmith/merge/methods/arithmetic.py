"""Sums of changes: the weighted mean of models, and task arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.merge.methods.registry import Blend, Method, added, method
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array


def combined(changes: Sequence[Array], coefficients: Sequence[float]) -> Array:
    """Σ cᵢ τᵢ in the order of the models, into the first change."""
    for change, coefficient in zip(changes, coefficients, strict=True):
        np.multiply(change, change.dtype.type(coefficient), out=change)
    total = changes[0]
    for change in changes[1:]:
        np.add(total, change, out=total)
    return total


@method("task_arithmetic", "Task Arithmetic", "Ilharco et al. 2023, arXiv:2212.04089")
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """θ = θ₀ + λ Σᵢ wᵢ τᵢ with τᵢ = θᵢ − θ₀ (section 2).

    | paper | here |
    |---|---|
    | θ_pre | base |
    | τ_t | `Piece.change` |
    | λ | `scale` times the model's weight |

    A negative weight takes a task away (negation). No deviation: the order of operations is that of mergekit 0.1.5, so in
    float32 its result is the same to the bit.
    """

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        def blend(piece: Piece) -> Array:
            total = combined(piece.changes(), sources.weights)
            if self.scale != 1:
                np.multiply(total, total.dtype.type(self.scale), out=total)
            return added(piece, total)

        return lambda _: blend


@method("linear", "weighted mean (model soup)", "Wortsman et al. 2022, arXiv:2203.05482")
@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """θ = θ₀ + λ Σᵢ wᵢ (θᵢ − θ₀) / Σᵢ wᵢ; with λ = 1 the weighted mean Σ wᵢ θᵢ / Σ wᵢ (equation 1, "uniform soup").

    | paper | here |
    |---|---|
    | θᵢ | a model; the base counts only where it is named among the models |
    | 1/k | wᵢ / Σ w |

    Deviation: written as a change of the base, so that λ = 0 gives the base; rounding differs from that of a plain mean.
    Weights that are all 0 give the base.
    """

    negative: ClassVar[bool] = False
    of_base: ClassVar[bool] = True

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        total = sum(sources.weights)
        shares = [self.scale * weight / total if total else 0.0 for weight in sources.weights]
        return lambda _: lambda piece: added(piece, combined(piece.changes(), shares))

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        if not np.isfinite(sum(weights)):
            raise WeightsmithError("--weights are too large to be added: give smaller ones, only their ratios count")
