"""Two checkpoints side by side: every tensor accounted for, and one operation over all of them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from weightsmith.delta import Change, Dense
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.vectors.operations import Guards, vector


class Found(NamedTuple):
    """What a walk came to.

    Attributes:
        changes: tensor name → v; distance: ‖f - w‖ / ‖w‖ over all of them.
        guards: tensor name → what the guards of division did, where they did something.
        integers_differ: names of other tensors, such as counters, in which the two differ.
    """

    changes: dict[str, Change]
    distance: float
    guards: dict[str, dict[str, int]]
    integers_differ: list[str]


class Walk(NamedTuple):
    """One operation over the tensors of two checkpoints."""

    operation: str
    mode: str
    guards: Guards

    def over(self, w: Checkpoint, f: Checkpoint, names: list[str]) -> Found:
        """The vectors of these tensors. Raises `WeightsmithError` for NaN, infinity, and what leaves the range of float32."""
        changes: dict[str, Change] = {}
        counts: dict[str, dict[str, int]] = {}
        differ: list[str] = []
        apart = length = 0.0
        for name in names:
            before, after = w.read(name), f.read(name)
            if before.is_floating_point() != after.is_floating_point():
                raise WeightsmithError(
                    f"{name} is {before.dtype} in {w.name} and {after.dtype} in {f.name}: give checkpoints of one architecture"
                )
            if not before.is_floating_point():
                if not torch.equal(before, after):
                    differ.append(name)
                continue
            if w.tied(name) != name and f.tied(name) == w.tied(name):
                continue  # one tensor under two names changes once
            check_numbers(w, name, before)
            check_numbers(f, name, after)
            wide = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
            before, after = before.to(wide), after.to(wide)
            change, guarded = vector(self.operation, self.mode, before, after, self.guards)
            if not bool(torch.isfinite(change).all()):
                raise WeightsmithError(
                    f"{self.operation} leaves the range of {wide} in {name}: give weights of a smaller size, or float64 ones"
                )
            changes[name] = Dense(change)
            if guarded:
                counts[name] = guarded
            apart += float((after.double() - before.double()).square().sum())
            length += float(before.double().square().sum())
        distance = math.sqrt(apart / length) if length else 0.0
        return Found(changes, distance, counts, differ)


def shared(w: Checkpoint, f: Checkpoint, without: Collection[str]) -> list[str]:
    """The names that both have, all but those left out. Raises `WeightsmithError` where one has others than the other."""
    unknown = [name for name in without if name not in w and name not in f]
    if unknown:
        raise WeightsmithError(
            f"`without` names {unknown[0]!r}, which neither {w.name} nor {f.name} has: "
            f"give names as the checkpoints have them{perhaps(unknown[0], [*w.names, *f.names])}"
        )
    ours, theirs = ([name for name in one.names if name not in without] for one in (w, f))
    shared = set(ours) & set(theirs)
    if not shared:
        raise WeightsmithError(
            f"{f.name} and {w.name} share no tensor: they are of different architectures, give a pair of one"
        )
    for these, there, absent in ((ours, w, f), (theirs, f, w)):
        alone = [name for name in these if name not in shared]
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise WeightsmithError(
                f"{there.name} has the tensor {alone[0]!r}{more} and {absent.name} has not: give checkpoints of one "
                "architecture, or leave tensors out with `without`"
            )
    for name in ours:
        if w.shape(name) != f.shape(name):
            raise WeightsmithError(
                f"{name} is {w.shape(name)} in {w.name} and {f.shape(name)} in {f.name}: give checkpoints of the same "
                "sizes, or leave a head of other classes out with `without`"
            )
    return ours


def check_numbers(checkpoint: Checkpoint, name: str, tensor: Tensor) -> None:
    """Raise `WeightsmithError` for NaN or infinity in a tensor of a checkpoint."""
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsmithError(
            f"{name} of {checkpoint.name} holds NaN or infinity: give a checkpoint whose training did not diverge"
        )
