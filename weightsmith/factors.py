"""How one parameter changes: by factors of low rank, or element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change left · right of a matrix parameter.

    Attributes:
        left: (rows, rank); right: (rank, columns). Rows and columns are those of the parameter as it is stored.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise WeightsmithError(
                f"low-rank factors {tuple(self.left.shape)} and {tuple(self.right.shape)} do not multiply"
            )
        _check_finite(self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    def dense(self) -> Tensor:
        """The change itself, (rows, columns)."""
        return self.left @ self.right

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.left * factor, self.right)

    def norm(self) -> float:
        """Frobenius norm, from the factors alone."""
        gram = (self.left.mT @ self.left) * (self.right @ self.right.mT)
        return float(gram.sum().clamp(min=0).sqrt())

    def compressed(self, tolerance: float = 1e-12) -> LowRank:
        """An equal change of the smallest rank: singular values below `tolerance` of the largest are dropped."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        kept = max(1, int((s > tolerance * s[0]).sum())) if len(s) and s[0] > 0 else 1
        return LowRank(q_left @ (u[:, :kept] * s[:kept]), vh[:kept] @ q_right.mT)


@dataclass(frozen=True, eq=False)
class Dense:
    """A change of a parameter of any shape, element by element."""

    change: Tensor

    def __post_init__(self) -> None:
        _check_finite(self.change)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.change.shape)

    def dense(self) -> Tensor:
        """The change itself."""
        return self.change

    def scaled(self, factor: float) -> Dense:
        return Dense(self.change * factor)

    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.change.norm())


Change = LowRank | Dense


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise WeightsmithError(
            "a change of weights holds NaN or infinity: the solve that made it did not succeed, give it a larger ridge"
        )


def joined(a: Change, b: Change) -> Change:
    """The sum of two changes of one parameter; two of low rank stay factors. Raises `WeightsmithError` for other shapes."""
    if a.shape != b.shape:
        raise WeightsmithError(f"changes of shape {a.shape} and {b.shape} cannot be added")
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return LowRank(torch.cat([a.left, b.left], 1), torch.cat([a.right, b.right], 0))
    return Dense(a.dense() + b.dense())


def factored(change: Change) -> LowRank:
    """A matrix's change as factors; a dense one by SVD at full rank, in float64."""
    if isinstance(change, LowRank):
        return change
    u, s, vh = torch.linalg.svd(change.change.double(), full_matrices=False)
    return LowRank(u * s, vh)
