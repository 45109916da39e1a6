"""One solver behind every closed-form editor.

    ΔW = R (Kᵀ M K + ρ Ω⁻¹)⁻¹ Kᵀ M

with keys K (d, E), residuals R (o, E), a metric M (d, d) that says where keys may be used cheaply, a ridge ρ and the
weights Ω of the edits. ROME, EMMET, MEMIT and AlphaEdit differ in M and ρ alone. Only E×E systems are solved and the
result stays low rank: left = R G⁻¹ (o, E), right = (M K)ᵀ (E, d). Everything is float64 on the CPU.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError

_log = logging.getLogger(__name__)

_SINGULAR = 1e13
"""Condition number beyond which a float64 solve has no digits left to trust."""
_NO_PIVOT = 1e-12
"""Share of the mean diagonal below which a Cholesky pivot is rounding noise: the matrix is singular."""


class Metric(Protocol):
    """A symmetric positive semi-definite M (d, d) that is never built."""

    def times(self, keys: Tensor) -> Tensor:
        """M K (d, E) of keys K (d, E)."""
        ...


@dataclass(frozen=True, eq=False)
class NullSpace:
    """M = V diag(g) Vᵀ on the (near) null space V of preserved keys: AlphaEdit's metric (Fang et al. 2025, eq. 7).

    With g = 1 that is the paper's projector P = V Vᵀ. The null space of measured keys is never empty of energy, though,
    and P treats a direction that holds some like one that holds none; whitened, g_i = 1/(1 + λ_i/(ε λ̄)) weighs each by
    its eigenvalue λ_i, with λ̄ = tr(C)/d and the floor ε.

    Attributes:
        basis: V (d, free), orthonormal eigenvectors of C; gains: g (free,).
        leaked: share of the preserved keys' energy that lies in the null space all the same, 0 to 1.
    """

    basis: Tensor
    gains: Tensor
    leaked: float

    def times(self, keys: Tensor) -> Tensor:
        return self.basis @ (self.gains[:, None] * (self.basis.mT @ keys))

    @property
    def dimension(self) -> int:
        """Dimensions of the null space."""
        return self.basis.shape[1]

    @classmethod
    def of(
        cls,
        moment: Tensor,
        *,
        fraction: float | None = None,
        energy: float | None = None,
        threshold: float | None = None,
        floor: float | None = None,
    ) -> NullSpace:
        """The null space of a second moment C (d, d), by exactly one of the first three rules.

        Args:
            fraction: its share of the d dimensions, those of smallest eigenvalue.
            energy: as many dimensions as hold at most this share of tr(C).
            threshold: eigenvalues below this absolute number, the published rule (it does not travel between models).
            floor: ε of the whitening; None takes the paper's projector.

        Raises:
            WeightsmithError: no rule or several, a null space without a dimension, or a floor that is not positive.
        """
        values, vectors = torch.linalg.eigh(moment.double())  # ascending
        values = values.clamp(min=0)
        total = values.sum().clamp(min=torch.finfo(torch.float64).tiny)
        rules = [rule for rule in (fraction, energy, threshold) if rule is not None]
        if len(rules) != 1:
            raise WeightsmithError("give exactly one of null_fraction, null_energy and null_threshold")
        if floor is not None and floor <= 0:
            raise WeightsmithError(f"the floor of a whitened null space must be positive, not {floor:g}")
        if fraction is not None:
            free = round(fraction * len(values))
        elif energy is not None:
            free = int((values.cumsum(0) <= energy * total).sum())
        else:
            free = int((values < threshold).sum())
        if not 1 <= free <= len(values):
            raise WeightsmithError(
                f"the null space of the preserved keys has {free} of {len(values)} dimensions: "
                "give a larger null_fraction, null_energy or null_threshold"
            )
        kept = values[:free]
        gains = torch.ones_like(kept) if floor is None else 1 / (1 + kept / (floor * total / len(values)))
        return cls(vectors[:, :free].contiguous(), gains, float(kept.sum() / total))


@dataclass(frozen=True, eq=False)
class InverseMoment:
    """M = (λ C)⁻¹ through one Cholesky factorisation: MEMIT's metric (Meng et al. 2023, eq. 14), λ = `weight`.

    A moment of fewer keys than dimensions is singular: 1e-6 of its mean diagonal is added then, and only then, because
    it would change the answer by a tenth where C has eigenvalues as small as that.
    """

    factor: Tensor
    weight: float

    def times(self, keys: Tensor) -> Tensor:
        return torch.cholesky_solve(keys, self.factor) / self.weight

    @classmethod
    def of(cls, moment: Tensor, weight: float) -> InverseMoment:
        c = moment.double()
        scale = float(c.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(c)
        if bool(failed) or float(factor.diagonal().min()) ** 2 <= _NO_PIVOT * scale:
            jitter = 1e-6 * scale + torch.finfo(torch.float64).tiny
            factor = torch.linalg.cholesky(c + jitter * torch.eye(len(c), dtype=c.dtype))
        return cls(factor, weight)


@dataclass(frozen=True, eq=False)
class Solution:
    """ΔW = left · right with what the solve knows of itself.

    Attributes:
        left: (o, E), right: (E, d), float64.
        condition: condition number of the E×E system.
        ridge: the absolute ρ that was used.
    """

    left: Tensor
    right: Tensor
    condition: float
    ridge: float

    def change_on(self, moment: Tensor) -> float:
        """√ tr(ΔW C ΔWᵀ): root mean square change of the value over the keys of a moment C (d, d)."""
        inner = self.right @ moment.double() @ self.right.mT
        return float((self.left @ inner * self.left).sum().clamp(min=0).sqrt())

    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        gram = (self.left.mT @ self.left) * (self.right @ self.right.mT)
        return float(gram.sum().clamp(min=0).sqrt())


def solve(
    keys: Tensor,
    residuals: Tensor,
    metric: Metric,
    *,
    ridge: float | None = None,
    absolute_ridge: float | None = None,
    weights: Tensor | None = None,
) -> Solution:
    """Solve for the update of one linear map.

    Args:
        keys: K (d, E); residuals: R (o, E), wanted value − present value; zero columns protect their keys.
        metric: M.
        ridge: ρ relative to mean diag(Kᵀ M K), so that it means the same on any model.
        absolute_ridge: ρ itself, as the papers state it. Exactly one of both.
        weights: Ω (E,), all ones by default; an edit of weight 4 counts like four.

    Raises:
        WeightsmithError: shapes that do not fit, NaN, or keys that vanish under M.
    """
    k, r = keys.double(), residuals.double()
    if k.ndim != 2 or r.ndim != 2 or k.shape[1] != r.shape[1] or k.shape[1] == 0:
        raise WeightsmithError(f"keys (d, E) and residuals (o, E) do not fit: {tuple(k.shape)}, {tuple(r.shape)}")
    if not (bool(torch.isfinite(k).all()) and bool(torch.isfinite(r).all())):
        raise WeightsmithError("keys or residuals hold NaN or infinity: the model overflows on these requests")
    if (ridge is None) == (absolute_ridge is None):
        raise WeightsmithError("give exactly one of ridge (relative) and absolute ridge (l2)")
    rho_given = absolute_ridge if absolute_ridge is not None else ridge
    if rho_given is not None and not rho_given >= 0:
        raise WeightsmithError(f"the ridge must be 0 or more, not {rho_given:g}")
    omega = torch.ones(k.shape[1], dtype=k.dtype) if weights is None else weights.double()
    if omega.shape != (k.shape[1],) or not bool((omega > 0).all()):
        raise WeightsmithError(f"the weights of {k.shape[1]} edits must be as many positive numbers")
    mk = metric.times(k)
    gram = k.mT @ mk
    gram = (gram + gram.mT) / 2
    scale = float(gram.diagonal().mean())
    if scale <= 0:
        raise WeightsmithError("the keys to edit vanish under the metric: give a larger null space or other layers")
    rho = absolute_ridge if absolute_ridge is not None else (ridge or 0.0) * scale
    system = gram + rho * torch.diag(1 / omega)
    condition = float(torch.linalg.cond(system))
    if not condition < _SINGULAR:
        # Equal keys make the equality-constrained system singular; the smallest ridge that restores it is reported.
        rho += 1e-10 * scale
        system = gram + rho * torch.diag(1 / omega)
        _log.warning("duplicate or dependent keys: a ridge of 1e-10 of the mean diagonal was added to solve for them")
    left = torch.linalg.solve(system, r.mT).mT
    return Solution(left, mk.mT, condition, rho)
