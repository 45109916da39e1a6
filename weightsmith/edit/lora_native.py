"""An edit as a LoRA adapter of a given rank: the change B A nearest to an edit's ΔW on the inputs that matter.

    min ‖(B A − ΔW) G^½‖_F,  B (out, rank), A (rank, in)

over a weighing G (in, in) of the layer's inputs, such as C + K Kᵀ of preserved and edited keys; without one, G = I. With U
the leading left singular vectors of ΔW G^½, B = U and A = Uᵀ ΔW is the best of its rank (Eckart and Young 1936, on ΔW G^½),
and needs no inverse of G. The adapter is the one of Hu et al., LoRA, 2022, section 4.1: W' = W + (alpha/rank) B A.

Only the rank of ΔW is worked in: ΔW = Q T with orthonormal Q (out, r), so B = Q b and every system is r×r. Everything is
float64 on the CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightsmith.delta import Change, Delta, LowRank, factored
from weightsmith.errors import WeightsmithError

_log = logging.getLogger(__name__)

_INVISIBLE = 1e-14
"""Share of the largest eigenvalue of T G Tᵀ below which a direction of the change is rounding noise under G."""
_FLOAT32 = 1e-6
"""Share of G's norm that G − Gᵀ, or a negative eigenvalue, may have: what a moment summed in float32 leaves."""


@dataclass(frozen=True)
class LoRAOptions:
    """How an edit becomes an adapter.

    Attributes:
        rank: largest rank of a layer's adapter; a change of lower rank keeps its own.
        alpha: `lora_alpha` to write, the change is the same whatever it is; None takes each layer's rank.
        scale: factor on the whole change.
        use_svd: begin at the best B A; else at B = 0 and Kaiming-uniform A, as LoRA training does.
        fit_steps: steps of alternating least squares from there, each over B and then over A.
        tolerance: largest reconstruction error ‖(B A − ΔW) G^½‖ / ‖ΔW G^½‖ of a layer, 0 to 1.
        allow_fallback: keep a layer's change as it was where its adapter misses the tolerance; else that is an error.
    """

    rank: int = 16
    alpha: float | None = None
    scale: float = 1.0
    use_svd: bool = True
    fit_steps: int = 0
    tolerance: float = 0.05
    allow_fallback: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise WeightsmithError(f"--lora-rank must be 1 or more, not {self.rank}: 16 is usual, give that")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise WeightsmithError(
                f"--lora-alpha must be a positive number, not {self.alpha:g}: leave it out to take the rank"
            )
        if not 0 < self.scale < math.inf:
            raise WeightsmithError(f"--lora-scale must be a positive number, not {self.scale:g}: 1 is the edit itself")
        if self.fit_steps < 0:
            raise WeightsmithError(
                f"--lora-fit-steps must be 0 or more, not {self.fit_steps}: give 0 for the SVD alone"
            )
        if not self.use_svd and self.fit_steps == 0:
            raise WeightsmithError("an adapter begun without its SVD is zero: give --lora-fit-steps, or --lora-use-svd")
        if not 0 <= self.tolerance < 1:
            raise WeightsmithError(
                f"the tolerance of an adapter must be from 0 to below 1, not {self.tolerance:g}: give 0.01 say"
            )


def adapted(
    delta: Delta,
    options: LoRAOptions,
    weighing: Mapping[str, Tensor] | None = None,
    transposed: Collection[str] = (),
    seed: int = 0,
) -> tuple[Delta, list[dict[str, Any]]]:
    """The delta with every matrix's change as B A of at most the rank asked for, ready for `Delta.to_lora`.

    A bias's change passes as it is. At the rank of ΔW the SVD's B A is ΔW itself, also where G does not see all of it.

    Args:
        weighing: parameter name → symmetric positive semi-definite G (in, in) over the inputs of its layer; 1 without.
        transposed: names of the weights that are stored (in, out); `weightsmith.adapters.transposed_weights` lists them.
        seed: of the random A.

    Returns:
        The delta, and one row a matrix: `parameter`; `rank` of what is kept for it; `error` of its adapter, before `scale`;
        `fallback`, whether the change itself is kept in place of that adapter; `enough_rank`, the smallest whose best B A
        meets the tolerance.

    Raises:
        WeightsmithError: a change that no adapter holds; a weighing of a parameter that does not change, of another size,
            not symmetric positive semi-definite, or zero where its parameter changes; an error above the tolerance
            without `allow_fallback`.
    """
    weighing = weighing or {}
    matrices = [name for name, change in delta.changes.items() if len(change.shape) == 2]
    strange = [name for name in weighing if name not in matrices]
    if strange:
        raise WeightsmithError(f"the weighing names {strange[0]}, of which this delta changes no matrix: leave it out")
    draw = torch.Generator().manual_seed(seed)
    changes: dict[str, Change] = {}
    rows: list[dict[str, Any]] = []
    for name, change in delta.changes.items():
        if name not in matrices:
            if len(change.shape) != 1:
                raise WeightsmithError(f"{name} cannot be part of a LoRA adapter: apply the delta and save the model")
            changes[name] = change
            continue
        g = weighing.get(name)
        turned = name in transposed
        view = _View.of(name, _turned(factored(change)) if turned else factored(change), g)
        low, error = view.adapter(options, draw)
        enough = view.enough_rank(options.tolerance)
        fallback = error > options.tolerance
        if fallback:
            _tell(name, options, low.left.shape[1], error, enough)
        changes[name] = change if fallback else _turned(low) if turned else low
        rank = view.rank if fallback else low.left.shape[1]
        rows.append({"parameter": name, "rank": rank, "error": error, "fallback": fallback, "enough_rank": enough})
    info = delta.info | {"lora": asdict(options) | {"parameters": rows}}
    made = replace(delta, changes=changes, info=info)
    return made if options.scale == 1 else made * options.scale, rows


def _turned(low: LowRank) -> LowRank:
    return LowRank(low.right.mT.contiguous(), low.left.mT.contiguous())


def _tell(name: str, options: LoRAOptions, rank: int, error: float, enough: int) -> None:
    """Warn of an adapter that misses the tolerance, or raise where it may not fall back."""
    missed = f"the rank-{rank} adapter of {name} has an error of {error:.3g}, above {options.tolerance:g}"
    if options.allow_fallback:
        _log.warning("%s: its whole change is kept (rank %d would be enough)", missed, enough)
        return
    remedy = (
        f"--lora-rank {enough} would be enough" if enough > rank
        else f"rank {enough} would be enough with more --lora-fit-steps or --lora-use-svd"
    )  # fmt: skip
    raise WeightsmithError(f"{missed}: {remedy}, or give --allow-fallback to keep the whole change there")


@dataclass(frozen=True, eq=False)
class _View:
    """ΔW = Q T as G sees it.

    Attributes:
        q: Q (out, r), orthonormal; t: T (r, in); g: G (in, in) or None for I.
        values: eigenvalues of T G Tᵀ (r,), descending: the squared singular values of ΔW G^½; vectors: (r, r).
    """

    q: Tensor
    t: Tensor
    g: Tensor | None
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, name: str, change: LowRank, g: Tensor | None) -> _View:
        """The view of a change (out, in) at its own rank. Raises as `adapted`."""
        low = LowRank(change.left.double().cpu(), change.right.double().cpu()).compressed()
        q, r = torch.linalg.qr(low.left)
        t = r @ low.right
        g = None if g is None else _checked(name, g.double().cpu(), t.shape[1])
        gram = t @ (t if g is None else t @ g).mT
        values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        size = float(t.norm()) ** 2 * (1.0 if g is None else float(g.norm()))
        if float(values.min()) < -_FLOAT32 * size:
            raise WeightsmithError(f"the weighing of {name} is not positive semi-definite: measure it again")
        values = values.clamp(min=0)
        if bool(t.any()) and float(values.sum()) <= _INVISIBLE * size:
            raise WeightsmithError(f"the weighing of {name} is zero where it changes: add the keys of the edits to it")
        return cls(q, t, g, values, vectors)

    @property
    def rank(self) -> int:
        """r, the rank of ΔW, at least 1."""
        return len(self.t)

    def enough_rank(self, tolerance: float) -> int:
        """The smallest rank, from 1, at which the best B A has at most this error."""
        tail = self.values.flip(0).cumsum(0).flip(0)  # tail[k]: what rank k misses, squared
        return max(1, int((tail > tolerance**2 * self.values.sum()).sum()))

    def adapter(self, options: LoRAOptions, draw: torch.Generator) -> tuple[LowRank, float]:
        """B A of the rank asked for (left B, right A), and its error. An adapter of the whole rank is ΔW itself."""
        k = min(options.rank, self.rank)
        if options.use_svd and k == self.rank:
            return LowRank(self.q, self.t), 0.0
        if options.use_svd:
            seen = int((self.values > _INVISIBLE * self.values[0]).sum())
            b = self.vectors[:, : min(k, seen)]
            a = b.mT @ self.t
        else:
            b = self.t.new_zeros(self.rank, k)
            a = (2 * torch.rand(k, self.t.shape[1], generator=draw, dtype=torch.float64) - 1) / self.t.shape[1] ** 0.5
        if options.fit_steps > 0:
            *_, (b, a) = half_steps(self.t, self.g, a, options.fit_steps)
        return LowRank(self.q @ b, a), relative_error(b, a, self.t, self.g)


def half_steps(t: Tensor, g: Tensor | None, a: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Alternating least squares for min ‖(b A − T) G^½‖_F: b (r, k) and A (k, in) after each half step.

    Each half step is the exact minimum over its factor, so the error never rises. A step multiplies b's column space by
    T G Tᵀ: it is subspace iteration and ends at the weighted SVD unless A begins orthogonal to it; the tangent of the angle
    between them shrinks by (σ_{k+1}/σ_k)² a step, σ the singular values of T G^½.

    Args:
        t: T (r, in); g: G (in, in), None for I; a: A (k, in) to begin at, k ≤ r.
        steps: how many; each over b and then over A.
    """
    for _ in range(steps):
        ag = a if g is None else a @ g
        b = (t @ ag.mT) @ torch.linalg.pinv(ag @ a.mT, hermitian=True)  # A G Aᵀ is singular where G is
        yield b, a
        b, _ = torch.linalg.qr(b)  # B A depends on b's column space alone once A is best for it
        a = b.mT @ t
        yield b, a


def relative_error(b: Tensor, a: Tensor, t: Tensor, g: Tensor | None) -> float:
    """‖(b A − T) G^½‖_F / ‖T G^½‖_F of b (r, k), A (k, in), T (r, in); 0 where T is."""
    d = b @ a - t
    missed, whole = (float((x * (x if g is None else x @ g)).sum().clamp(min=0)) for x in (d, t))
    return math.sqrt(missed / whole) if whole > 0 else 0.0


def _checked(name: str, g: Tensor, inputs: int) -> Tensor:
    if tuple(g.shape) != (inputs, inputs):
        raise WeightsmithError(
            f"the weighing of {name} is {tuple(g.shape)}, its layer has {inputs} inputs: give ({inputs}, {inputs}), and "
            "name it in `transposed` if the model stores it (in, out)"
        )
    if not bool(torch.isfinite(g).all()) or float((g - g.mT).norm()) > _FLOAT32 * float(g.norm()):
        raise WeightsmithError(f"the weighing of {name} is not finite and symmetric: measure it again")
    return (g + g.mT) / 2
