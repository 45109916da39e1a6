"""DARE: drop most of each task's change at random, and scale up what stays."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weightsmith.merge.methods.arithmetic import combined
from weightsmith.merge.methods.registry import Blend, Method, added, fraction, method
from weightsmith.merge.methods.ties import agreed
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array


class Drops:
    """Which elements of a tensor's change a model keeps, drawn piece after piece.

    The draws depend on the seed, the model's place among the models and the tensor's name alone: not on the order of the
    tensors, on shards or on the size of pieces.
    """

    def __init__(self, seed: int, model: int, name: str, density: float) -> None:
        key = hashlib.sha256(f"{seed}:{model}:{name}".encode()).digest()
        # Raw draws are the same in every version of numpy, which those of its distributions need not be.
        self._bits = np.random.PCG64DXSM(int.from_bytes(key[:16], "little"))
        self._limit = round(density * 2**32)

    def kept(self, n: int) -> Array:
        """(n,) whether each of the next n elements is kept; n is even but for the last piece of a tensor."""
        draws = self._bits.random_raw((n + 1) // 2).view("<u4")[:n]
        return draws < self._limit if self._limit < 2**32 else np.ones(n, bool)


@dataclass(frozen=True, kw_only=True)
class _Dare(Method):
    """What both ways share.

    Attributes:
        density: 1 − p, the share of each change that stays.
        seed: of the draws.
    """

    density: float = 0.5
    seed: int = 42

    def check(self) -> None:
        super().check()
        fraction("--density", self.density)

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        def of(name: str) -> Blend:
            first = sources.twins.get(name, name)
            drops = [Drops(self.seed, model, first, self.density) for model in range(len(sources.models))]

            def blend(piece: Piece) -> Array:
                changes = piece.changes()
                for change, drop in zip(changes, drops, strict=True):
                    change[~drop.kept(len(change))] = 0
                    np.multiply(change, change.dtype.type(1 / self.density), out=change)
                return self._merged(piece, changes, sources.weights)

            return blend

        return of

    @abstractmethod
    def _merged(self, piece: Piece, changes: list[Array], weights: tuple[float, ...]) -> Array:
        """The piece of the merged model, from what was not dropped of the models' changes."""


@method("dare_linear", "DARE", "Yu et al. 2024, arXiv:2311.03099")
@dataclass(frozen=True, kw_only=True)
class DareLinear(_Dare):
    """θ = θ₀ + λ Σᵢ wᵢ mᵢ ⊙ τᵢ / (1 − p), mᵢ ~ Bernoulli(1 − p) (equations 3 to 5).

    | paper | here |
    |---|---|
    | p, drop rate | 1 − `density` |
    | δᵗ | `Piece.change` |
    | λ | `scale` times the model's weight |

    Deviation: a tensor that is stored under two names is dropped alike under both, so that it stays tied.
    """

    def _merged(self, piece: Piece, changes: list[Array], weights: tuple[float, ...]) -> Array:
        return added(piece, combined(changes, [self.scale * weight for weight in weights]))


@method("dare_ties", "DARE with TIES", "Yu et al. 2024, arXiv:2311.03099")
@dataclass(frozen=True, kw_only=True)
class DareTies(_Dare):
    """As `DareLinear`, with TIES' election of signs and its mean over those that agree in place of the sum.

    | paper | here |
    |---|---|
    | p, drop rate | 1 − `density`; it takes the place of TIES' trimming |
    | λ | `scale` |

    Deviations: those of `Ties` and of `DareLinear`.
    """

    def _merged(self, piece: Piece, changes: list[Array], weights: tuple[float, ...]) -> Array:
        return agreed(piece, changes, weights, self.scale)
