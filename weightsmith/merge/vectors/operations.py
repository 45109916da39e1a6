"""The four operations of task arithmetic on one tensor, raw and anchored, with the guards that keep them finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError

Operation = Literal["subtract", "add", "multiply", "divide"]
Mode = Literal["raw", "anchored"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What keeps division finite; used by "divide" alone.

    Attributes:
        epsilon: where |w| < epsilon · rms(w) of its tensor, or w = 0, nothing is divided: the element stays as it is.
        r_max: the largest |f/w|; in the anchored mode the smallest is 1/r_max.
    """

    epsilon: float = 1e-3
    r_max: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise WeightsmithError(f"epsilon must be a number of at least 0, not {self.epsilon:g}: give 1e-3")
        if not (math.isfinite(self.r_max) and self.r_max > 1):
            raise WeightsmithError(f"r_max must be a number above 1, not {self.r_max:g}: give 10")


def is_relative(operation: str, mode: str) -> bool:
    """Whether the vector holds logarithms of factors, w → w·exp(λv), rather than changes, w → w + λv."""
    return operation == "divide" and mode == "anchored"


def vector(operation: str, mode: str, w: Tensor, f: Tensor, guards: Guards) -> tuple[Tensor, dict[str, int]]:
    """(v, counts) for one tensor; counts has only what happened: guarded, clipped, sign_changed.

    ========= ===================== ============================================
    operation raw: w + λ·v          anchored: the target at λ = 1
    ========= ===================== ============================================
    subtract  v = f - w             f                        (w + λ·(f - w))
    add       v = f + w             (w + f)/2                (w + λ·(f - w)/2)
    multiply  v = f ⊙ w             sign(w)·√(|w|·|f|)       (w + λ·(target - w))
    divide    v = f / w, guarded    f                        (w·(f/w)^λ, guarded)
    ========= ===================== ============================================

    The way of anchored division goes through the powers of f/w, which a factor below 0 has none of: where f has another
    sign than w, w stays and is counted as `sign_changed`.

    Args:
        w, f: of one shape, float32 or float64.
    """
    if operation == "divide":
        return _factors(w, f, guards) if mode == "anchored" else _ratios(w, f, guards)
    if operation == "subtract":
        return f - w, {}
    if operation == "add":
        return ((f - w) / 2 if mode == "anchored" else f + w), {}
    # The product of the roots, since the product of large numbers may have none.
    return (w.sign() * w.abs().sqrt() * f.abs().sqrt() - w if mode == "anchored" else f * w), {}


def _ratios(w: Tensor, f: Tensor, guards: Guards) -> tuple[Tensor, dict[str, int]]:
    small = _small(w, guards)
    ratio = f / torch.where(small, torch.ones_like(w), w)
    clipped = ~small & (ratio.abs() > guards.r_max)
    ratio = ratio.clamp(-guards.r_max, guards.r_max).masked_fill(small, 0.0)
    return ratio, _counted(guarded=small, clipped=clipped)


def _factors(w: Tensor, f: Tensor, guards: Guards) -> tuple[Tensor, dict[str, int]]:
    small = _small(w, guards)
    turned = ~small & (w.sign() * f.sign() < 0)
    still = small | turned
    # Logarithms one by one: a quotient of floats may leave their range where its logarithm is a common number.
    logarithm = f.abs().log() - torch.where(still, torch.ones_like(w), w).abs().log()
    limit = math.log(guards.r_max)
    clipped = ~still & (logarithm.abs() > limit)
    logarithm = logarithm.clamp(-limit, limit).masked_fill(still, 0.0)
    return logarithm, _counted(guarded=small, clipped=clipped, sign_changed=turned)


def _small(w: Tensor, guards: Guards) -> Tensor:
    rms = float(w.double().square().mean().sqrt()) if w.numel() else 0.0
    return (w.abs() < guards.epsilon * rms) | (w == 0)


def _counted(**masks: Tensor) -> dict[str, int]:
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return {name: count for name, count in counts.items() if count}
