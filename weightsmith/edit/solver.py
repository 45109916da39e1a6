"""One solver behind every closed-form editor.

    ΔW = R (Kᵀ M K + ρ Ω⁻¹)⁻¹ Kᵀ M

with keys K (d, E), residuals R (o, E), a metric M (d, d) that says where keys may be used cheaply, a ridge ρ and the
weights Ω of the edits. ROME, EMMET, MEMIT and AlphaEdit differ in M and ρ alone; keys that must not move (replayed
ones, AlphaEdit's cache) are more columns with R = 0. Only E×E systems are solved and the result stays low rank:
left = R G⁻¹ (o, E), right = (M K)ᵀ (E, d). Everything is float64 on the CPU.

Scale-free: M = (λC)⁻¹ with ρ = 1 (MEMIT) is M = C⁻¹ with ρ = λ, so `InverseMoment.of(C)` with a relative ridge
β = ρ / mean diag(Kᵀ M K) is MEMIT without an absolute number: an edit of that mean, alone, is met to 1/(1 + β) on any
model. Over the preserved keys themselves kᵀC⁻¹k averages to d, so λ = β d for keys like them: the published 15,000 on
GPT-J (d = 16,384) and 20,000 on GPT-2 XL (6,400) would be β of 0.9 and 3.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.edit.metric import Metric
from weightsmith.errors import WeightsmithError

_log = logging.getLogger(__name__)

_TINY = torch.finfo(torch.float64).tiny
_DEPENDENT = 1e-12
"""Eigenvalue of a Gram matrix of unit diagonal below which float32 keys are told apart by their rounding alone."""
_VANISHED = 1e-7
"""Cosine of k and M k below which nothing but rounding is left of k: float32 measures keys no better."""
_ILL = 1e10
"""Condition number of the system of unit diagonal from which fewer than six digits of the update are right."""
_SAME_KEY = 1e-5
"""Length of the difference of two unit keys below which they are one: what batching and rounding do to a key."""
_SAME_WISH = 1e-3
"""Relative difference below which two residuals of one key agree."""


@dataclass(frozen=True, eq=False)
class Solution:
    """ΔW = left · right with what the solve knows of itself.

    Columns are counted over the edits and then the replayed keys; r of them are solved for, all but those merged away.

    Attributes:
        left: (o, r), right: (r, d), float64.
        condition: condition number of the r×r system Kᵀ M K + ρ Ω⁻¹.
        rank: numerical rank of Kᵀ M K: how many columns the metric can tell apart.
        ridge: the absolute ρ that was used; under M = C⁻¹ it is MEMIT's λ.
        division: smallest u·k of an edit, u = M k/‖M k‖, ROME's division factor: alone, without ridge, an edit costs
            ‖ΔW‖ = ‖r‖/(u·k).
        alignment: the same without units, cos(k, M k): tiny where the metric forbids nearly all of a key.
        residual: root mean square norm of the edits' residuals.
        merged: pairs (edit, later column) of one key, up to a factor, whose residuals agree: one edit of their joint
            weight.
        contradictory: the same where the residuals disagree; their weighted mean is solved for.
    """

    left: Tensor
    right: Tensor
    condition: float
    rank: int
    ridge: float
    division: float
    alignment: float
    residual: float
    merged: tuple[tuple[int, int], ...]
    contradictory: tuple[tuple[int, int], ...]

    def change_on(self, moment: Tensor) -> float:
        """√ tr(ΔW C ΔWᵀ): root mean square change of the value over the keys of a moment C (d, d)."""
        inner = self.right @ moment.double() @ self.right.mT
        return float((self.left @ inner * self.left).sum().clamp(min=0).sqrt())

    def leakage(self, moment: Tensor) -> float:
        """Root mean square change over the keys of a moment C (d, d), relative to that asked of the edits."""
        return self.change_on(moment) / max(self.residual, _TINY)

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
    replayed: Tensor | None = None,
    replay_weights: Tensor | None = None,
) -> Solution:
    """Solve for the update of one linear map.

    Columns whose ρ/ω is zero (or lost in float64) must be met exactly. Of several columns of one key among them the
    weighted mean is met: the limit of a ridge that vanishes.

    Args:
        keys: K (d, E); residuals: R (o, E), wanted value − present value; zero columns protect their keys.
        metric: M.
        ridge: ρ relative to mean diag(Kᵀ M K) of the edits alone: the same on any model, whatever is replayed.
        absolute_ridge: ρ itself, as the papers state it. Exactly one of both.
        weights: Ω (E,), all ones by default; an edit of weight 4 counts like four, one of infinite weight is met.
        replayed: keys (d, P) that enter with R = 0; what AlphaEdit's code keeps as their (d, d) sum of outer products.
        replay_weights: (P,), all ones by default; a key of infinite weight does not move at all.

    Raises:
        WeightsmithError: shapes that do not fit, NaN, weights that are not positive, keys that vanish under M, or more
            keys to be met exactly than are independent under M.
    """
    k, r, omega = _columns(keys, residuals, weights, replayed, replay_weights)
    edits = keys.shape[1]
    ridges = [given for given in (ridge, absolute_ridge) if given is not None]
    if len(ridges) != 1:
        raise WeightsmithError("give exactly one of ridge (relative) and absolute ridge (l2)")
    if not 0 <= ridges[0] < float("inf"):
        raise WeightsmithError(f"the ridge must be 0 or more, not {ridges[0]:g}: 0 meets every edit exactly")
    mk = metric.times(k)
    gram = k.mT @ mk
    gram = (gram + gram.mT) / 2
    if not bool(torch.isfinite(gram).all()):
        raise WeightsmithError(
            "Kᵀ M K holds NaN or infinity: the keys are too large, or the metric is not finite; load the model "
            "in float32, or measure the metric again"
        )
    pull = gram.diagonal() / mk.norm(dim=0).clamp(min=_TINY)
    aligned = pull / k.norm(dim=0).clamp(min=_TINY)
    alive = aligned > _VANISHED
    if not bool(alive[:edits].any()):
        raise WeightsmithError("the keys to edit vanish under the metric: give a larger null space or other layers")
    scale = float(gram.diagonal()[:edits].mean())
    rho = ridges[0] * (scale if absolute_ridge is None else 1.0)
    slack = rho / omega
    exact = slack <= _DEPENDENT * gram.diagonal().clamp(min=scale)

    first = _first_of_its_key(k)
    pairs = _pairs(k, r, first, edits)
    # A key that vanishes under M does not move whatever is solved for: asking it to stay asks for nothing.
    idle = exact & ~alive & (r == 0).all(0)
    r, solved = _joined(k, r, omega, first, exact & ~idle)
    solved &= ~idle
    r, right, slack, exact, alive = r[:, solved], mk[:, solved].mT, slack[solved], exact[solved], alive[solved]
    gram, different = gram[solved][:, solved], len(set(first[solved].tolist()))
    rank, rank_exact = (_rank(gram[kept][:, kept]) for kept in (alive, alive & exact))
    if rank_exact < (wanted := int(exact.sum())):
        raise WeightsmithError(
            f"{wanted} different keys cannot all be met exactly, because only {rank_exact} are independent under the "
            "metric: give a ridge (l2) above 0, a larger null space, or fewer edits"
        )
    if rank < different:
        _log.warning("%d different keys, only %d independent under the metric: the ridge trades them", different, rank)

    system = gram + torch.diag(slack)
    spectrum = torch.linalg.eigvalsh(system)
    unit = system.diagonal().rsqrt()  # weights differ by powers of ten; a unit diagonal takes that out of the solve
    factor, failed = torch.linalg.cholesky_ex(unit[:, None] * system * unit)
    if bool(failed):
        raise WeightsmithError(
            f"the metric is not positive semi-definite, or a ridge of {rho:g} is too small for it: give a larger ridge (l2), "
            "or measure the metric again"
        )
    pivots = factor.diagonal()
    if float(pivots.max() / pivots.min()) ** 2 > _ILL:  # a lower bound of the condition number
        _log.warning(
            "the system is ill-conditioned: some keys are nearly one under the metric; give a larger ridge (l2)"
        )
    return Solution(
        left=(torch.cholesky_solve((r * unit).mT, factor) * unit[:, None]).mT,
        right=right,
        condition=float(spectrum[-1] / spectrum[0]) if spectrum[0] > 0 else float("inf"),
        rank=rank,
        ridge=rho,
        division=float(pull[:edits].min()),
        alignment=float(aligned[:edits].min()),
        residual=float(residuals.double().square().sum(0).mean().sqrt()),
        merged=tuple(pair for pair, agree in pairs.items() if agree),
        contradictory=tuple(pair for pair, agree in pairs.items() if not agree),
    )


def _columns(
    keys: Tensor, residuals: Tensor, weights: Tensor | None, replayed: Tensor | None, replay_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """K (d, E + P), R (o, E + P) and Ω (E + P,) of edits and replayed keys together, checked, float64."""
    k, r = keys.double(), residuals.double()
    if k.ndim != 2 or r.ndim != 2 or k.shape[1] != r.shape[1] or k.shape[1] == 0:
        raise WeightsmithError(
            f"keys {tuple(k.shape)} and residuals {tuple(r.shape)} do not fit: give (d, E) and (o, E), a column an edit"
        )
    replayed = k[:, :0] if replayed is None else replayed
    if replayed.ndim != 2 or len(replayed) != len(k):
        raise WeightsmithError(
            f"replayed keys {tuple(replayed.shape)} do not fit keys {tuple(k.shape)}: give (d, P), of the same layer"
        )
    k, r = torch.cat([k, replayed.double()], 1), torch.cat([r, r.new_zeros(len(r), replayed.shape[1])], 1)
    if not (bool(torch.isfinite(k).all()) and bool(torch.isfinite(r).all())):
        raise WeightsmithError(
            "keys or residuals hold NaN or infinity: the model overflows on these requests, load it in float32 "
            "or leave them out"
        )
    parts = []
    for given, count in ((weights, keys.shape[1]), (replay_weights, replayed.shape[1])):
        parts.append(k.new_ones(count) if given is None else given.double())
        if parts[-1].shape != (count,) or not bool((parts[-1] > 0).all()):
            raise WeightsmithError(
                f"the weights of {count} edits or replayed keys must be as many positive numbers: give 1 for the usual"
            )
    return k, r, torch.cat(parts)


def _first_of_its_key(k: Tensor) -> Tensor:
    """For each column of K (d, n) the first one of the same direction, or of the opposite one: (n,)."""
    unit = k / k.norm(dim=0).clamp(min=_TINY)
    same = (unit.mT @ unit).abs() >= 1 - _SAME_KEY**2 / 2  # ‖a − b‖² = 2 − 2ab
    first: Tensor = same.int().fill_diagonal_(1).argmax(1)  # a key of zeros is its own first, too
    return first


def _pairs(k: Tensor, r: Tensor, first: Tensor, edits: int) -> dict[tuple[int, int], bool]:
    """Pairs (edit, later column) of one key, and whether their residuals agree."""
    found: dict[tuple[int, int], bool] = {}
    for column, head in enumerate(first.tolist()):
        if head < min(column, edits):
            asked = (k[:, column] @ k[:, head] / k[:, head].square().sum()) * r[:, head]
            apart = (r[:, column] - asked).norm()
            found[head, column] = bool(apart <= _SAME_WISH * torch.maximum(r[:, column].norm(), asked.norm()))
            if not found[head, column]:
                _log.warning("columns %d and %d ask for different values of one key: a mean is solved", head, column)
    return found


def _joined(k: Tensor, r: Tensor, omega: Tensor, first: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """R with one wish for each key that must be met exactly, and which columns are left (n,).

    Columns c_i k of one key, wanted r_i, weights ω_i: Σ ωcr / Σ ωc² is what a vanishing ridge gives k.
    """
    r, left = r.clone(), torch.ones_like(exact)
    for head in set(first[exact].tolist()):
        columns = (exact & (first == head)).nonzero().flatten()
        w = omega[columns]
        w = w.isinf().double() if bool(w.isinf().any()) else w
        c = k[:, columns].mT @ k[:, columns[0]] / k[:, columns[0]].square().sum().clamp(min=_TINY)
        r[:, columns[0]] = r[:, columns] @ (w * c) / (w * c**2).sum()
        left[columns[1:]] = False
    return r, left


def _rank(gram: Tensor) -> int:
    """Numerical rank of a Gram matrix of keys, whatever their lengths."""
    unit = gram.diagonal().rsqrt()
    return int((torch.linalg.eigvalsh(unit[:, None] * gram * unit) > _DEPENDENT).sum())
