"""What removed keys did is given to those that stay, so that a linear map loses as little as it can without training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.prune.statistics import KeyStatistic

FOLDS = ("ridge", "mean", "none")
"""In the place of removed keys: the best linear guess from those that stay, their mean, zero."""


def folded(
    weight: Tensor,
    bias: Tensor,
    kept: Sequence[int],
    statistic: KeyStatistic | None,
    fold: str = "ridge",
    ridge: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """A linear map that reads only the kept keys and gives what the whole one gave, as nearly as it can.

    With K the kept and D the removed entries of a key of mean μ and covariance C, the ridge regression of k_D on k_K is
    k_D ≈ μ_D + B (k_K − μ_K), B = C_DK (C_KK + λ I)⁻¹, λ = ridge · mean diag C_KK, so that
    W' = W_K + W_D B and b' = b + W_D (μ_D − B μ_K). A mean fold has B = 0; with none, k_D = 0.

    Where all keys are kept, weight and bias come back as they are, to the bit.

    Args:
        weight: (o, d). bias: (o,).
        kept: sorted entries of a key that stay; may be none.
        statistic: of the keys; None only where `fold` is none.
        ridge: relative to the mean variance of the kept keys.

    Returns:
        (o, kept) weight and (o,) bias, float64 unless nothing was removed.

    Raises:
        WeightsmithError: an unknown fold, a negative ridge, no statistic, or keys so dependent that a larger ridge is needed.
    """
    if fold not in FOLDS or not 0 <= ridge < float("inf"):
        raise WeightsmithError(
            f"removal cannot fold with fold={fold!r} and ridge={ridge}: give ridge, mean or none, and a ridge from 0"
        )
    if len(kept) == weight.shape[1]:
        return weight, bias
    stay = torch.tensor(list(kept), dtype=torch.long)
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[stay] = False
    w, b = weight.detach().cpu().double(), bias.detach().cpu().double()
    w_kept, w_gone = w[:, stay], w[:, gone]
    if fold == "none":
        return w_kept, b
    if statistic is None:
        raise WeightsmithError(f"to fold by {fold} needs calibration images: give some, or fold none")
    mean, covariance = statistic.mean, statistic.covariance
    if fold == "mean" or not len(stay):
        return w_kept, b + w_gone @ mean[gone]
    # (kept, gone) Bᵀ
    regression = _solved(covariance[stay][:, stay], covariance[stay][:, gone], ridge)
    guess = w_gone @ regression.mT
    return w_kept + guess, b + w_gone @ mean[gone] - guess @ mean[stay]


def _solved(kept: Tensor, both: Tensor, ridge: float) -> Tensor:
    """(C_KK + λ I)⁻¹ C_KD; keys that never vary explain nothing."""
    scale = kept.diagonal().mean()
    if not scale > 0:
        return torch.zeros_like(both)
    regular = kept + ridge * scale * torch.eye(len(kept), dtype=kept.dtype)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if int(failed):
        raise WeightsmithError(
            f"the kept keys depend on one another and ridge={ridge:g} does not part them: give a larger ridge, 1e-3 say, "
            "or more calibration images"
        )
    solved: Tensor = torch.cholesky_solve(both, factor)
    return solved
