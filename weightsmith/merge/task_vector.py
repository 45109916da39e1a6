"""`TaskVector`: what fine-tuning did to a checkpoint, as a value that is added, scaled, negated and put on other weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightsmith.delta import Change, Delta, Dense, HasModule, stepped
from weightsmith.errors import WeightsmithError, did_you_mean, perhaps
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.vectors.operations import MODES, OPERATIONS, Guards, is_relative
from weightsmith.merge.vectors.walk import Walk, check_numbers, shared

if TYPE_CHECKING:
    from weightsmith.merge.vectors.operations import Mode, Operation

_log = logging.getLogger(__name__)

Source = str | Path | nn.Module | HasModule | Mapping[str, Tensor] | Checkpoint
"""Anything that `Checkpoint.open` opens."""

FAR = 0.5
"""‖f - w‖ / ‖w‖ above which the two are hardly of one lineage: fine-tuning moved 0.14 where another start gave 1.04."""


@dataclass(frozen=True, eq=False, init=False)
class TaskVector:
    """A `Delta` over a whole checkpoint, made of a pretrained one, w, and a fine-tuned one, f.

    Formulae (Ilharco et al. 2023, arXiv:2212.04089, equation 1, for "subtract"; the other operations are ours) stand in
    `operations.vector`. `apply_to` gives w + λ·v, and for anchored division w·exp(λ·v); λ = 0 gives w bit for bit, whatever
    the operation, mode and dtype. Integers and truth values come from the base. The arithmetic is in float32, of float64
    tensors in float64.

    Sums, differences, negation, scaling, saving and loading are those of `Delta`. Vectors of anchored division hold
    logarithms of factors: their sum is the product of the factors, and they do not mix with others.

    Unlike an edit, a task vector is meant for other weights as well, so it never refuses any of its names and shapes. What
    it was made from stands in `info` by hash; that w and f are hardly of one lineage (‖f - w‖ > `FAR` · ‖w‖) is a warning.

    | paper | here |
    |---|---|
    | θ_pre, θ_ft | `pretrained`, `finetuned` |
    | τ | `delta.changes` |
    | λ | `scaling_coef` |

    Attributes:
        delta: tensor name → v. Its `info` has what made it: operation, mode, the sources' names and hashes, `distance`
            ‖f - w‖/‖w‖, `guards` by tensor, `integers_differ`.
    """

    delta: Delta

    def __init__(
        self,
        pretrained: Source,
        finetuned: Source,
        operation: Operation = "subtract",
        mode: Mode = "raw",
        *,
        without: Collection[str] = (),
        guards: Guards | None = None,
    ) -> None:
        """Make the vector of two checkpoints, a tensor at a time.

        Args:
            pretrained, finetuned: paths (safetensors, shards, a Hugging Face folder, a `.pt` state dict), networks in memory
                or their tensors.
            without: names of tensors that are left out, those of heads say; they may differ, or be in one alone.
            guards: of division.

        Raises:
            WeightsmithError: an unknown operation or mode, tensors that are missing, extra or of another shape, NaN or
                infinity, numbers that leave the range of float32.
        """
        for what, value, known in (("operation", operation, OPERATIONS), ("mode", mode, MODES)):
            if value not in known:
                raise WeightsmithError(f"the {what} {value!r} is unknown: {did_you_mean(str(value), known)}")
        with Checkpoint.open(pretrained) as w, Checkpoint.open(finetuned) as f:
            names = shared(w, f, without)
            found = Walk(operation, mode, guards or Guards()).over(w, f, names)
            info: dict[str, Any] = {
                "method": "task vector", "operation": operation, "mode": mode,
                "pretrained": {"name": w.name, "sha256": w.sha256()},
                "finetuned": {"name": f.name, "sha256": f.sha256()},
                "distance": found.distance, "guards": found.guards, "integers_differ": found.integers_differ,
                "without": sorted(without),
            }  # fmt: skip
        if found.distance > FAR:
            _log.warning(
                "%s is %.2f of the norm of %s away from it: a fine-tuned model is seldom further than %.1f, so the two may not "
                "be of one lineage",
                f.name,
                found.distance,
                w.name,
                FAR,
            )
        self._hold(Delta(found.changes, info=info), is_relative(operation, mode))

    def _hold(self, delta: Delta, relative: bool) -> None:
        object.__setattr__(self, "delta", replace(delta, info=delta.info | {"relative": relative}))

    @classmethod
    def of(cls, delta: Delta) -> TaskVector:
        """The delta as a task vector, which then goes on any weights."""
        made = cls.__new__(cls)
        made._hold(replace(delta, base=""), bool(delta.info.get("relative", False)))
        return made

    @property
    def info(self) -> dict[str, Any]:
        """What made it; JSON values only."""
        return self.delta.info

    @property
    def relative(self) -> bool:
        """Whether it holds logarithms of factors, as anchored division does."""
        return bool(self.delta.info["relative"])

    def norm(self) -> float:
        """‖v‖, the Frobenius norm over all tensors."""
        return self.delta.norm()

    def __add__(self, other: TaskVector) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        if self.relative != other.relative:
            raise WeightsmithError(
                "a vector of anchored division holds factors, which do not add up with changes: apply one after the other, "
                "`second.apply_to(first.apply_to(pretrained))`"
            )
        return self._with(self.delta + other.delta)

    def __radd__(self, other: object) -> TaskVector:
        """The builtin `sum` begins with 0."""
        return self if other == 0 else NotImplemented

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other) if isinstance(other, TaskVector) else NotImplemented

    def __mul__(self, factor: float) -> TaskVector:
        return self._with(self.delta * _number(factor))

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def then(self, later: TaskVector) -> TaskVector:
        """The vector of both steps, of which the second was made on the weights that the first left: their sum."""
        return self + later

    def _with(self, delta: Delta) -> TaskVector:
        made = type(self).__new__(type(self))
        made._hold(delta, self.relative)
        return made

    def at(self, pretrained: Source, scaling_coef: float = 1.0) -> Delta:
        """The change of these weights at a coefficient: λ·v, or w·(exp(λ·v) - 1) where v holds logarithms of factors.

        Raises:
            WeightsmithError: a coefficient that is no number, a tensor that is missing or of another shape, a change that
                leaves the range of its numbers.
        """
        coefficient = _number(scaling_coef)
        with Checkpoint.open(pretrained) as w:
            self._check(w)
            if not self.relative:
                return coefficient * self.delta
            changes: dict[str, Change] = {}
            for name, change in self.delta.changes.items():
                step = _step(change.dense(), w.read(name), coefficient, relative=True)
                _check_finite(name, step, coefficient)
                changes[name] = Dense(step)
        return replace(self.delta, changes=changes)

    def apply_to(self, pretrained: Source, scaling_coef: float = 1.0) -> dict[str, Tensor]:
        """The weights with the vector put on: a state dict of all tensors of `pretrained`, in their types.

        Tensors of which the vector says nothing stay as they are. `weightsmith.merge` writes such results to files without
        holding them in memory.

        Raises:
            WeightsmithError: as `at`; NaN or infinity in `pretrained`.
        """
        coefficient = _number(scaling_coef)
        made: dict[str, Tensor] = {}
        with Checkpoint.open(pretrained) as w:
            self._check(w)
            for name in w.names:
                weight = w.read(name)
                change = self.delta.changes.get(name, self.delta.changes.get(w.tied(name)))
                if change is not None:
                    check_numbers(w, name, weight)
                    weight = stepped(weight, _step(change.dense(), weight, coefficient, relative=self.relative))
                    _check_finite(name, weight, coefficient)
                made[name] = weight
        return made

    @contextmanager
    def on(self, model: nn.Module | HasModule, scaling_coef: float = 1.0) -> Iterator[None]:
        """Put the vector on while the block runs, then restore the saved weights bit for bit. Raises as `at`."""
        with self.at(model, scaling_coef).on(model):
            yield

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically; `Delta.load` reads it as well."""
        self.delta.save(path)

    @classmethod
    def load(cls, path: Path | str) -> TaskVector:
        """Read what `save`, or `Delta.save`, wrote. Raises `WeightsmithError` for a missing or damaged file."""
        return cls.of(Delta.load(path))

    def _check(self, w: Checkpoint) -> None:
        for name, change in self.delta.changes.items():
            if name not in w:
                raise WeightsmithError(
                    f"{w.name} has no tensor {name!r} that this task vector changes: give a model of the same architecture, "
                    "as a path where the vector was made of paths, in memory where it was made of networks in memory"
                    f"{perhaps(name, w.names)}"
                )
            if w.shape(name) != change.shape:
                raise WeightsmithError(
                    f"{name} is {w.shape(name)} in {w.name} and {change.shape} in the task vector: give a model of its sizes"
                )


def analogy(a: Source, b: Source, c: Source, scaling_coef: float = 1.0) -> dict[str, Tensor]:
    """C + λ·(B - A), "A is to B as C is to the result": a state dict (Ilharco et al. 2023, section 5).

    Raises:
        WeightsmithError: as `TaskVector` and `apply_to`.
    """
    return TaskVector(a, b).apply_to(c, scaling_coef)


def _step(v: Tensor, weight: Tensor, coefficient: float, relative: bool) -> Tensor:
    """What is added to a weight, in the type of v."""
    step = v * coefficient
    return weight.to(v.dtype) * torch.expm1(step) if relative else step


def _number(value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise WeightsmithError(f"a task vector is scaled by a number, not {value!r}: give 0.3 say") from error
    if not math.isfinite(number):
        raise WeightsmithError(f"a task vector is scaled by a finite number, not {number}: give 0.3 say")
    return number


def _check_finite(name: str, tensor: Tensor, coefficient: float) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsmithError(
            f"at the coefficient {coefficient:g} {name} leaves the range of its type: give a smaller coefficient"
        )
