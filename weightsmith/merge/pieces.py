"""The tensors of a base and its models side by side, a piece at a time, in the numbers that they are merged in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightsmith.errors import WeightsmithError
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.storage.dtypes import Array

PIECE = 2**17
"""Elements of a piece: in float32 half a megabyte, so that those of a few checkpoints stay in a processor's cache."""

Seen = Callable[[int, Array], None]
"""Called with a source (0 the base, then the models) and the bits of a piece of it, in order."""


def dot(a: Array, b: Array) -> float:
    """A scalar product over a piece; float64 where float32 would overflow or vanish."""
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(np.dot(a, b))
        return value if math.isfinite(value) and value != 0 else float(np.dot(a.astype("f8"), b.astype("f8")))


def is_finite(numbers: Array) -> bool:
    """Whether an array holds neither NaN nor infinity; its square tells it in a third of the time of asking each number."""
    return math.isfinite(dot(numbers, numbers)) or bool(np.isfinite(numbers).all())


@dataclass(frozen=True, eq=False)
class Piece:
    """One piece of one tensor. Its arrays are used again for the next piece.

    Attributes:
        first: index of its first element in the flat tensor.
        base: (elements,) of the base.
        models: (elements,) of each model.
        room: (elements,) of scratch for each change.
        squares: ‖base‖² and ‖τ‖² of each model over the piece.
    """

    first: int
    base: Array
    models: tuple[Array, ...]
    room: tuple[Array, ...]
    squares: tuple[float, ...]
    _used: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, first: int, base: Array, models: Sequence[Array], room: Sequence[Array]) -> Piece:
        """The piece of these numbers, its changes made in `room`."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the squares
            for model, change in zip(models, room, strict=True):
                np.subtract(model, base, out=change)
        return cls(first, base, tuple(models), tuple(room), tuple(dot(numbers, numbers) for numbers in (base, *room)))

    def change(self, model: int) -> Array:
        """τ = model − base, (elements,), which the caller may overwrite: it is made anew the next time."""
        if model in self._used:
            np.subtract(self.models[model], self.base, out=self.room[model])
        self._used.add(model)
        return self.room[model]

    def changes(self) -> list[Array]:
        """Every model's change."""
        return [self.change(model) for model in range(len(self.models))]


@dataclass(frozen=True, eq=False)
class Sources:
    """A base, the models to merge with it, and what each counts for.

    Attributes:
        weights: one a model.
        names: the tensors of the base that are merged: floating-point ones, without a head that is not.
        places: for each model the name under which it has a tensor of the base, where that is another.
        twins: tensor → the first of those that are the same tensor in every source; random choices go by that name.
    """

    base: Checkpoint
    models: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    places: tuple[Mapping[str, str], ...] = ()
    twins: Mapping[str, str] = field(default_factory=dict)

    def elements(self, name: str) -> int:
        """How many numbers a tensor has."""
        return int(np.prod(self.base.shape(name), dtype=np.int64))

    def place(self, model: int, name: str) -> str:
        """The name that a model has for a tensor of the base."""
        return self.places[model].get(name, name) if self.places else name

    def computed(self, name: str) -> str:
        """The numpy type in which a tensor is merged: float64 where a source has that, else float32."""
        kinds = [self.base.kind(name)] + [m.kind(self.place(i, name)) for i, m in enumerate(self.models)]
        return "f8" if any(kind.computed == "f8" for kind in kinds) else "f4"

    def pieces(self, name: str, seen: Seen | None = None) -> Iterator[Piece]:
        """The tensor's pieces in order.

        Raises:
            WeightsmithError: NaN or infinity in a source, naming it and the tensor.
        """
        total, wide = self.elements(name), self.computed(name)
        sources = [(self.base, name)] + [(model, self.place(i, name)) for i, model in enumerate(self.models)]
        length = min(PIECE, total)
        stored = [np.empty(length, checkpoint.kind(key).layout) for checkpoint, key in sources]
        room = [np.empty(length, wide) for _ in self.models]
        for first in range(0, total, PIECE):
            n = min(PIECE, total - first)
            numbers = []
            for which, (checkpoint, key) in enumerate(sources):
                bits = checkpoint.bits(key, first, stored[which][:n])
                if seen is not None:
                    seen(which, bits)
                numbers.append(checkpoint.kind(key).widened(bits) if bits.dtype != wide else bits)
                if numbers[-1].dtype != wide:
                    numbers[-1] = numbers[-1].astype(wide)
            piece = Piece.of(first, numbers[0], numbers[1:], [array[:n] for array in room])
            if not all(map(math.isfinite, piece.squares)):
                _check_finite(sources, numbers)
            yield piece

    def changes(self, name: str) -> list[Array]:
        """Every model's whole change of a tensor, in its shape, for methods that need it at once."""
        shape, wide = self.base.shape(name), self.computed(name)
        changes = [np.empty(self.elements(name), wide) for _ in self.models]
        for piece in self.pieces(name):
            for whole, change in zip(changes, piece.changes(), strict=True):
                whole[piece.first : piece.first + len(change)] = change
        return [change.reshape(shape) for change in changes]


def _check_finite(sources: Sequence[tuple[Checkpoint, str]], numbers: Sequence[Array]) -> None:
    """Raise `WeightsmithError` naming the source and the tensor that holds NaN or infinity; large numbers are none."""
    for (checkpoint, key), held in zip(sources, numbers, strict=True):
        if not np.isfinite(held).all():
            raise WeightsmithError(
                f"{checkpoint.name} holds NaN or infinity in {key}: a training that diverged leaves such weights, so give "
                "another checkpoint"
            )
