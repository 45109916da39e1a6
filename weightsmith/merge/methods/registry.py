"""What a method of merging is, and the table of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.merge.pieces import Piece, Sources
from weightsmith.merge.storage.dtypes import Array

Blend = Callable[[Piece], Array]
"""From a piece of the sources to the same piece of the merged tensor, in the type that it was computed in."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to merge models that were fine-tuned from one base.

    Attributes:
        scale: λ, what the merged change is multiplied by; 0 gives the base, bit for bit.
    """

    scale: float = 1.0

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    negative: ClassVar[bool] = True
    """Whether a negative weight means something: negation."""
    weighted: ClassVar[bool] = True
    """Whether models can count for more or less."""
    of_base: ClassVar[bool] = False
    """Whether the base can be one of the models as well."""

    @abstractmethod
    def blender(self, sources: Sources) -> Callable[[str], Blend]:
        """What a tensor's pieces are merged by, from the tensor's name; reads what must be known beforehand."""

    def default_weights(self, models: int) -> tuple[float, ...]:
        """The weights where the user gives none."""
        return (1.0,) * models

    def check(self) -> None:
        """Raise `WeightsmithError` where a hyper-parameter is out of range."""
        if not np.isfinite(self.scale):
            raise WeightsmithError(f"--lambda must be a finite number, not {self.scale}: give 1 say")

    def check_weights(self, weights: Sequence[float]) -> None:
        """Raise `WeightsmithError` where the number of models, or a weight, does not suit the method."""
        models = len(weights)
        if models < self.fewest or (self.most is not None and models > self.most):
            many = f"exactly {self.fewest}" if self.most == self.fewest else f"at least {self.fewest}"
            raise WeightsmithError(f"--method {self.name} takes {many} beside the base, and --models names {models}")
        if not all(np.isfinite(weight) for weight in weights):
            raise WeightsmithError("--weights must be finite numbers: give `1 0.5` say")
        if not self.weighted and len(set(weights)) > 1:
            raise WeightsmithError(
                f"--method {self.name} finds by itself what each model counts for: leave --weights out"
            )
        if not self.negative and min(weights) < 0:
            raise WeightsmithError(
                f"--weights {min(weights):g} makes no sense for --method {self.name}: take a model's change away with "
                "task_arithmetic, ties or dare_linear"
            )


METHODS: dict[str, type[Method]] = {}
_Method = TypeVar("_Method", bound=type[Method])


def method(name: str, title: str, paper: str) -> Callable[[_Method], _Method]:
    """Register a method under a name."""

    def register(kind: _Method) -> _Method:
        kind.name, kind.title, kind.paper = name, title, paper
        METHODS[name] = kind
        return kind

    return register


FLAGS = {"scale": "--lambda", "density": "--density", "gamma": "--gamma", "seed": "--seed"}
"""The flag of each hyper-parameter."""


def create(name: str, **parameters: Any) -> Method:
    """A method by name with its hyper-parameters; None stands for a parameter's default.

    Raises:
        WeightsmithError: an unknown name, a parameter that the method does not have, a value out of range.
    """
    if name not in METHODS:
        raise WeightsmithError(f"--method {name} is not known: {did_you_mean(name, METHODS)}")
    kind = METHODS[name]
    known = [field.name for field in fields(kind)]
    given = {key: value for key, value in parameters.items() if value is not None}
    unknown = [
        key for key in given if key not in known and key != "seed"
    ]  # a seed does no harm where nothing is random
    if unknown:
        flag = FLAGS.get(unknown[0], unknown[0])
        meant = did_you_mean(flag, [FLAGS[key] for key in known])
        raise WeightsmithError(f"{flag} is no option of --method {name}, leave it out: {meant}")
    made = kind(**{key: value for key, value in given.items() if key in known})
    made.check()
    return made


def fraction(flag: str, value: float, *, least: float = 0.0) -> None:
    """Raise `WeightsmithError` unless a share lies in [least, 1]; an open end where `least` is 0."""
    if not (0 < value <= 1 if least == 0 else least <= value <= 1):
        raise WeightsmithError(f"{flag} must be a share above 0 and at most 1, not {value:g}: give 0.2 say")


def added(piece: Piece, change: Array) -> Array:
    """Base + change, into `change`; elements that do not change keep their bits, where −0.0 + 0.0 would be +0.0."""
    out = np.add(piece.base, change, out=change)
    zero = out == 0
    if zero.any():
        zero &= piece.base == 0
        out[zero] = piece.base[zero]
    return out
