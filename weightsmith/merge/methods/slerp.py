"""Spherical interpolation between a base and one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.merge.methods.arithmetic import combined
from weightsmith.merge.methods.registry import Blend, Method, added, method
from weightsmith.merge.pieces import Piece, Sources, dot
from weightsmith.merge.storage.dtypes import Array

PARALLEL = 0.9995
"""|cos| above which the arc is a line: sin θ in the denominator would lose all digits."""


def products(sources: Sources, name: str) -> tuple[float, float, float]:
    """⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩ of the base's tensor and the model's, summed in float64 over pieces."""
    aa = bb = ab = 0.0
    for piece in sources.pieces(name):
        a, b = piece.base, piece.models[0]
        aa, bb, ab = aa + dot(a, a), bb + dot(b, b), ab + dot(a, b)
    return aa, bb, ab


@method("slerp", "SLERP", "Shoemake 1985, doi:10.1145/325165.325242")
@dataclass(frozen=True, kw_only=True)
class Slerp(Method):
    """θ = sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁ per tensor, cos Ω = ⟨θ₀, θ₁⟩ / (‖θ₀‖ ‖θ₁‖).

    | paper | here |
    |---|---|
    | u | t = λ times the model's weight, 0.5 by default |
    | Ω | the angle between a tensor of the base and the model's |

    Deviation: where |cos Ω| > 0.9995, or a tensor is zero, (1−t) θ₀ + t θ₁. Two passes over each tensor.
    """

    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = 1

    def default_weights(self, models: int) -> tuple[float, ...]:
        return (0.5,) * models

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        if not 0 <= self.scale * weights[0] <= 1:
            raise WeightsmithError(
                f"--weights {weights[0]:g} is no place between the base (0) and the model (1), where --method "
                "slerp goes: give 0.5 say"
            )

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        t = self.scale * sources.weights[0]

        def of(name: str) -> Blend:
            if t == 0:
                return lambda piece: piece.base
            from_base, from_model, linear = coefficients(t, *products(sources, name))

            def blend(piece: Piece) -> Array:
                if linear:
                    return added(piece, combined([piece.change(0)], [from_model]))
                mixed = np.multiply(piece.models[0], piece.base.dtype.type(from_model), out=piece.room[0])
                both: Array = np.add(piece.base * piece.base.dtype.type(from_base), mixed, out=mixed)
                return both

            return blend

        return of


def coefficients(t: float, aa: float, bb: float, ab: float) -> tuple[float, float, bool]:
    """What the base and the model count for at `t`, from their products, and whether that is a line."""
    cosine = ab / math.sqrt(aa) / math.sqrt(bb) if aa > 0 and bb > 0 else 1.0
    if not abs(cosine) <= PARALLEL:
        return 1 - t, t, True
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle), False
