"""When enough keys have been read: a rule that looks at an estimate each time its number of keys has doubled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError

_EXACT = 512
"""Up to this width all eigenvectors are computed; beyond it a randomised subspace iteration finds the top ones."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Stop reading when C = mean k kᵀ (d, d) no longer moves.

    The estimate C_n over n keys is looked at first at n = ½·tokens_per_dimension·d, then each time n has doubled. With
    C_2n = ½(C_n + C′_n), where C′_n comes from the second half of the keys alone, C_2n − C_n has the variance of C_2n
    itself when keys are independent: what moved since the last look has the size of the error that is left. It is one draw
    of it, so it may be small by chance; trace and top directions say little of the other directions.

    Attributes:
        tolerance_trace: the most that tr C may have moved since the last look, relative to it.
        overlap: the least ‖U₁ᵀU₂‖²_F / rank of the top eigenvectors U (d, rank) of two looks; 1 is the same subspace.
        rank: top eigenvectors compared, at most a quarter of d.
        tokens_per_dimension: at least that many keys for each of the d dimensions are read.

    Raises:
        WeightsmithError: a number that can never, or always, be met.
    """

    tolerance_trace: float = 0.01
    overlap: float = 0.98
    rank: int = 16
    tokens_per_dimension: float = 10.0

    def __post_init__(self) -> None:
        if not (self.tolerance_trace > 0 and 0 < self.overlap < 1 and self.rank >= 1 and self.tokens_per_dimension > 0):
            raise WeightsmithError(
                f"{self} cannot decide anything: tolerance_trace and tokens_per_dimension must be above 0, overlap "
                "between 0 and 1, rank at least 1"
            )

    def due(self, last: Look | None, width: int) -> int:
        """The number of keys at which to look next."""
        return math.ceil(self.tokens_per_dimension * width / 2) if last is None else 2 * last.count

    def look(self, matrix: Tensor, count: int, last: Look | None) -> Look:
        """Compare the estimate with the one of the last look.

        Args:
            matrix: (d, d) float64, on the CPU, symmetric; C over `count` keys.
        """
        width = len(matrix)
        trace, basis = float(matrix.trace()), _top(matrix, max(1, min(self.rank, width // 4)))
        if last is None:
            return Look(count, trace, basis)
        overlap = float((last.basis.mT @ basis).square().sum()) / basis.shape[1]
        return Look(count, trace, basis, abs(trace - last.trace) / max(last.trace, 1e-300), overlap)

    def passed(self, look: Look) -> bool:
        """Whether the look says that enough was read."""
        return (
            look.trace_change is not None
            and look.overlap is not None
            and look.trace_change <= self.tolerance_trace
            and look.overlap >= self.overlap
            and look.count >= self.tokens_per_dimension * len(look.basis)
        )


@dataclass(frozen=True, eq=False)
class Look:
    """An estimate as a look saw it.

    Attributes:
        count: keys read by then.
        trace: tr C.
        basis: (d, rank) float64 orthonormal, the top eigenvectors.
        trace_change: relative to the look before; None at the first.
        overlap: of the top subspaces of both looks, 0 to 1; None at the first.
    """

    count: int
    trace: float
    basis: Tensor
    trace_change: float | None = None
    overlap: float | None = None

    def __str__(self) -> str:
        if self.trace_change is None:
            return "looked at once"
        return f"trace moved {self.trace_change:.1%}, top-{self.basis.shape[1]} subspace overlap {self.overlap:.3f}"


def _top(matrix: Tensor, rank: int) -> Tensor:
    """(d, rank) the eigenvectors of largest eigenvalue of a symmetric positive semidefinite matrix."""
    if len(matrix) <= _EXACT:
        exact: Tensor = torch.linalg.eigh(matrix)[1]
        return exact[:, -rank:].contiguous()
    with torch.random.fork_rng(devices=[]):  # the random start is the same every time and nobody's draws are disturbed
        torch.manual_seed(0)
        vectors: Tensor = torch.svd_lowrank(matrix, q=rank + 16, niter=8)[0]
        return vectors[:, :rank].contiguous()
