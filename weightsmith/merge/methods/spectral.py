"""Merging by singular vectors: TSV-M and Iso-C."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.merge.methods.arithmetic import combined
from weightsmith.merge.methods.registry import Blend, Method, added, method
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array


@dataclass(frozen=True, kw_only=True)
class _Spectral(Method):
    """Matrices are merged by their singular vectors; of vectors and kernels of convolutions the mean of wᵢ τᵢ is taken."""

    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        def of(name: str) -> Blend:
            shape = sources.base.shape(name)
            if len(shape) != 2 or 0 in shape:
                shares = [self.scale * weight / len(sources.weights) for weight in sources.weights]
                return lambda piece: added(piece, combined(piece.changes(), shares))
            if self.scale == 0:
                return lambda piece: piece.base
            try:
                whole = self._of_matrix(sources.changes(name), sources.weights).reshape(-1)
            except np.linalg.LinAlgError as error:
                raise WeightsmithError(
                    f"{name} has no singular value decomposition ({error}): take another method"
                ) from error

            def blend(piece: Piece) -> Array:
                part = whole[piece.first : piece.first + len(piece.base)]
                return added(piece, np.multiply(part, part.dtype.type(self.scale)))

            return blend

        return of

    @abstractmethod
    def _of_matrix(self, changes: Sequence[Array], weights: Sequence[float]) -> Array:
        """The merged change of one matrix, before it is scaled."""


@method("tsv", "TSV-Merge", "Gargiulo et al. 2025, arXiv:2412.00081")
@dataclass(frozen=True, kw_only=True)
class TaskSingularVectors(_Spectral):
    """Δ = U⊥ Σ V⊥ᵀ from the leading singular triplets of every task side by side (algorithm 1).

    | paper | here |
    |---|---|
    | Δᵢ = Uᵢ Σᵢ Vᵢᵀ | SVD of a model's change of one matrix |
    | k, reduction coefficient | min(rows, columns) // number of models, at least 1 |
    | U ← [U₁ … U_T], Σ ← diag | side by side; Σᵢ times the model's weight |
    | U⊥ = P_U Q_Uᵀ | the orthogonal matrix nearest to U (Procrustes), from U = P_U D_U Q_Uᵀ |
    | α | `scale` |

    Deviation: none for matrices; the sizes of a whole matrix and of its factors must fit into memory.
    """

    def _of_matrix(self, changes: Sequence[Array], weights: Sequence[float]) -> Array:
        rank = max(1, min(changes[0].shape) // len(changes))
        lefts, values, rights = [], [], []
        for change, weight in zip(changes, weights, strict=True):
            u, s, vt = np.linalg.svd(change, full_matrices=False)
            lefts.append(u[:, :rank])
            values.append(s[:rank] * s.dtype.type(weight))
            rights.append(vt[:rank])
        left = _nearest_orthogonal(np.concatenate(lefts, axis=1))
        right = _nearest_orthogonal(np.concatenate(rights, axis=0))
        merged: Array = (left * np.concatenate(values)) @ right
        return np.ascontiguousarray(merged)


@method("iso_c", "Iso-C", "Marczak et al. 2025, arXiv:2502.04959")
@dataclass(frozen=True, kw_only=True)
class IsoC(_Spectral):
    """Δ = σ̄ U Vᵀ, where Σᵢ wᵢ τᵢ = U diag(σ) Vᵀ and σ̄ is the mean of σ (equation 6).

    | paper | here |
    |---|---|
    | Δ_TA | Σᵢ wᵢ τᵢ of one matrix |
    | σ̄ | mean of all min(rows, columns) singular values |
    | α | `scale` |

    Deviation: directions whose singular value is 0 within rounding stay 0. The changes that LoRA makes have many of them, and
    which vectors an SVD gives there is chance.
    """

    def _of_matrix(self, changes: Sequence[Array], weights: Sequence[float]) -> Array:
        u, s, vt = np.linalg.svd(combined(changes, weights), full_matrices=False)
        there = s > s[0] * max(changes[0].shape) * np.finfo(s.dtype).eps
        merged: Array = (u * (s.mean() * there)) @ vt
        return np.ascontiguousarray(merged)


def _nearest_orthogonal(matrix: Array) -> Array:
    """P Qᵀ of matrix = P D Qᵀ."""
    p, _, qt = np.linalg.svd(matrix, full_matrices=False)
    nearest: Array = p @ qt
    return nearest
