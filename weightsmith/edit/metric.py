"""Metrics of the solver: where keys may be used cheaply. What one editor has that another has not, beside its ridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError

_TINY = torch.finfo(torch.float64).tiny
_NO_PIVOT = 1e-12
"""Share of the mean diagonal below which a Cholesky pivot is rounding noise: the matrix is singular."""


class Metric(Protocol):
    """A symmetric positive semi-definite M (d, d) that is never built."""

    def times(self, keys: Tensor) -> Tensor:
        """M K (d, E) of keys K (d, E)."""
        ...


@dataclass(frozen=True)
class Identity:
    """M = I: with ρ = 0 the update of least norm that meets every edit, the baseline that preserves nothing."""

    def times(self, keys: Tensor) -> Tensor:
        return keys


@dataclass(frozen=True, eq=False)
class NullSpace:
    """M = V diag(g) Vᵀ on the (near) null space V of preserved keys: AlphaEdit's metric (Fang et al. 2025, eq. 7).

    With g = 1 that is the paper's projector P = V Vᵀ. The null space of measured keys is never empty of energy, though,
    and P treats a direction that holds some like one that holds none; whitened, g_i = 1/(1 + λ_i/(ε λ̄)) weighs each by
    its eigenvalue λ_i, with λ̄ = tr(C)/d and the floor ε.

    Attributes:
        basis: V (d, free), orthonormal eigenvectors of C; gains: g (free,).
        leaked: share of the preserved keys' energy that lies in the null space all the same, 0 to 1.
        complement: the basis spans everything but the null space, P = I − V Vᵀ: where the null space takes most of
            the dimensions, this is less to keep and to multiply by.
    """

    basis: Tensor
    gains: Tensor
    leaked: float
    complement: bool = False

    def times(self, keys: Tensor) -> Tensor:
        if self.complement:
            once = keys - self.basis @ (self.basis.mT @ keys)
            return once - self.basis @ (self.basis.mT @ once)  # what rounding left of a key that lies in the range
        return self.basis @ (self.gains[:, None] * (self.basis.mT @ keys))

    @property
    def dimension(self) -> int:
        """Dimensions of the null space."""
        size, columns = self.basis.shape
        return size - columns if self.complement else columns

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
            WeightsmithError: no rule or several, a null space without a dimension, a floor that is not positive, or
                a moment that is not finite.
        """
        rules = [rule for rule in (fraction, energy, threshold) if rule is not None]
        if len(rules) != 1:
            raise WeightsmithError("give exactly one of null_fraction, null_energy and null_threshold")
        if floor is not None and floor <= 0:
            raise WeightsmithError(
                f"the floor of a whitened null space must be positive, not {floor:g}: leave it out for the usual"
            )
        values, vectors = torch.linalg.eigh(_moment(moment))  # ascending
        values = values.clamp(min=0)
        total = values.sum().clamp(min=_TINY)
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
        leaked = float(kept.sum() / total)
        if floor is None and 3 * free > 2 * len(values):  # the complement is multiplied by twice
            rest = vectors[:, free:].contiguous()
            return cls(rest, torch.ones_like(values[free:]), leaked, complement=True)
        gains = torch.ones_like(kept) if floor is None else 1 / (1 + kept / (floor * total / len(values)))
        return cls(vectors[:, :free].contiguous(), gains, leaked)


@dataclass(frozen=True, eq=False)
class InverseMoment:
    """M = (w C + μ I)⁻¹ through one Cholesky factorisation, kept for every batch on the layer.

    | editor | weight w | shift μ | ρ |
    |---|---|---|---|
    | ROME (Meng et al. 2022, eq. 2), one edit | any | 0 | 0 |
    | MEMIT (Meng et al. 2023, eq. 14) | λ, or 1 | 0 | 1, or λ: the same update |
    | EMMET (Gupta et al. 2024) | its preservation weight | its regulariser | λ_e, 0 for a single edit |

    A moment of fewer keys than dimensions is singular: 1e-6 of its mean diagonal is added then, and only then, because
    it would change the answer by a tenth where C has eigenvalues as small as that.

    Attributes:
        factor: L (d, d), lower triangular, L Lᵀ = C + (μ/w) I; weight: w; shift: μ.
    """

    factor: Tensor
    weight: float
    shift: float = 0.0

    def times(self, keys: Tensor) -> Tensor:
        # Two triangular solves read the factor where it lies; `cholesky_solve` would copy it first, each time.
        half: Tensor = torch.linalg.solve_triangular(self.factor, keys, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
        return whole / self.weight

    @classmethod
    def of(
        cls, moment: Tensor, weight: float = 1.0, *, shift: float = 0.0, relative_shift: float | None = None
    ) -> InverseMoment:
        """The metric of a second moment C (d, d).

        Args:
            weight: w; 1 with a relative ridge is the scale-free form.
            shift: μ as the paper states it.
            relative_shift: μ relative to w tr(C)/d, in place of `shift`.

        Raises:
            WeightsmithError: a weight or shift out of range, both shifts, or a moment that is not finite.
        """
        if not (weight > 0 and shift >= 0 and (relative_shift is None or relative_shift >= 0)):
            raise WeightsmithError(
                "the weight of the second moment must be positive and its shift 0 or more: give 1 and 0"
            )
        if relative_shift is not None and shift != 0:
            raise WeightsmithError("give at most one of shift (absolute) and relative_shift")
        c = _moment(moment)
        if relative_shift is not None:
            shift = relative_shift * weight * float(c.diagonal().mean())
        if shift > 0:
            c = c.diagonal_scatter(c.diagonal() + shift / weight)
        scale = float(c.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(c)
        if bool(failed) or float(factor.diagonal().min()) ** 2 <= _NO_PIVOT * scale:
            factor = _raised(c, scale)
        return cls(factor, weight, shift)


def _raised(c: Tensor, scale: float) -> Tensor:
    """The factor of a moment of fewer independent keys than dimensions, raised by as little as makes it positive definite.

    Its products were taken in float32: beside one direction that is far larger than the mean, the zeros of the others are
    off by more than a millionth of the mean.
    """
    for raised in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        found, failed = torch.linalg.cholesky_ex(c.diagonal_scatter(c.diagonal() + raised * scale + _TINY))
        if not bool(failed):
            factor: Tensor = found
            return factor
    raise WeightsmithError(
        "the second moment of the preserved keys is not positive semi-definite: preserve more images or text, or load the "
        "model in float64"
    )


@dataclass(frozen=True, eq=False)
class Guarded:
    """M' = M − M Kₚ (S + Kₚᵀ M Kₚ)⁻¹ Kₚᵀ M: a metric under which the keys Kₚ (d, P) of earlier edits cost.

    Solving under M' is solving under M with Kₚ as more columns of residual zero and slack S = ρ Ω⁻¹ (block elimination of
    those columns), which is AlphaEdit's cache of earlier keys. Here a batch costs what its own keys cost: 2dP + P² a key
    instead of (E + P)³, and a new key joins the factor in P². Memory is P (d + P/2), never d×d by itself.

    Attributes:
        inner: M; moved: M Kₚ (d, P); factor: L (P, P), lower triangular, L Lᵀ = S + Kₚᵀ M Kₚ.
    """

    inner: Metric
    moved: Tensor
    factor: Tensor

    @classmethod
    def of(cls, inner: Metric, keys: Tensor, slack: Tensor) -> Guarded:
        """Guard keys (d, P) under M, each with its slack (P,): the ridge over the weight with which it is held.

        Raises:
            WeightsmithError: a slack that is not positive, or shapes that do not fit.
        """
        none = Guarded(inner, keys.double()[:, :0], torch.zeros(0, 0, dtype=torch.float64))
        return none.joined(keys, slack)

    @property
    def count(self) -> int:
        """P, how many keys are guarded."""
        return len(self.factor)

    def times(self, keys: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self.factor, self.moved.mT @ keys, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
        return self.inner.times(keys) - self.moved @ whole

    def joined(self, keys: Tensor, slack: Tensor) -> Guarded:
        """The metric with more keys (d, E) guarded: the factor grows by a block. Raises as `of`."""
        if not bool((slack > 0).all()):
            raise WeightsmithError("a guarded key needs a slack above 0: give a ridge (l2) above 0")
        k = keys.double()
        if k.ndim != 2 or len(k) != len(self.moved) or slack.shape != (k.shape[1],):
            raise WeightsmithError(
                f"guarded keys {tuple(k.shape)} with slack {tuple(slack.shape)} do not fit those that are there, "
                f"{tuple(self.moved.shape)}: they are of another layer or model"
            )
        moved = self.inner.times(k)
        beside = torch.linalg.solve_triangular(self.factor, self.moved.mT @ k, upper=False)  # (P, E)
        own = k.mT @ moved
        corner, failed = torch.linalg.cholesky_ex((own + own.mT) / 2 + torch.diag(slack.double()) - beside.mT @ beside)
        if bool(failed):
            raise WeightsmithError(
                "the keys of earlier edits cannot be held beside these, they are nearly the same: give a larger ridge (l2)"
            )
        top = torch.cat([self.factor, beside.new_zeros(beside.shape)], 1)
        factor = torch.cat([top, torch.cat([beside.mT, corner], 1)])
        return Guarded(self.inner, torch.cat([self.moved, moved], 1), factor)


def _moment(moment: Tensor) -> Tensor:
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not bool(torch.isfinite(moment).all()):
        raise WeightsmithError(f"a second moment {tuple(moment.shape)} must be (d, d) and finite: measure it again")
    return moment.double()
