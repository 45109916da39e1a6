"""Model Stock: how far to go from the base towards the mean of its fine-tunes, from the angle between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weightsmith.merge.methods.arithmetic import combined
from weightsmith.merge.methods.registry import Blend, Method, added, method
from weightsmith.merge.pieces import Sources, dot


@method("model_stock", "Model Stock", "Jang et al. 2024, arXiv:2403.19522")
@dataclass(frozen=True, kw_only=True)
class ModelStock(Method):
    """θ = θ₀ + λ t (θ̄ − θ₀) per tensor, t = N cos θ / (1 + (N − 1) cos θ) (equations 2 and 3).

    | paper | here |
    |---|---|
    | w_avg^(N) − w₀ | mean of the models' changes |
    | cos θ | mean over pairs of models of ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖) |
    | N | how many models |

    Deviation: a negative cos θ counts as 0, since models that moved apart say nothing of a common centre, and so does that
    of a tensor which some model did not change. Two passes over each tensor.
    """

    fewest: ClassVar[int] = 2
    weighted: ClassVar[bool] = False
    negative: ClassVar[bool] = False

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        def of(name: str) -> Blend:
            share = self.scale * ratio(sources, name) / len(sources.models)
            shares = [share * (1.0 if any(sources.weights) else 0.0)] * len(sources.models)
            return lambda piece: added(piece, combined(piece.changes(), shares))

        return of


def ratio(sources: Sources, name: str) -> float:
    """The t of one tensor, between 0 and 1."""
    n = len(sources.models)
    grams = np.zeros((n, n))
    for piece in sources.pieces(name):
        changes = piece.changes()
        for i, j in itertools.combinations_with_replacement(range(n), 2):
            grams[i, j] += dot(changes[i], changes[j])
    norms = [math.sqrt(float(grams[i, i])) for i in range(n)]
    if min(norms) == 0:
        return 0.0
    pairs = list(itertools.combinations(range(n), 2))
    cosine = sum(float(grams[i, j]) / norms[i] / norms[j] for i, j in pairs) / len(pairs)
    cosine = min(max(cosine, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine)
