"""Keys of earlier edits that a new batch is held from moving, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightsmith.edit.metric import Guarded
from weightsmith.edit.spread import Place


@dataclass(frozen=True, eq=False)
class GuardedKeys:
    """Keys of one batch at one layer.

    Attributes:
        keys: (d, E) float64; slack: (E,) the ridge over the weight with which each is guarded.
        owners: (E,) numbers of the edits that they belong to; of an answer's tokens each has a key.
    """

    keys: Tensor
    slack: Tensor
    owners: tuple[int, ...]

    def without(self, numbers: Collection[int]) -> GuardedKeys:
        """Those of other edits."""
        kept = [column for column, owner in enumerate(self.owners) if owner not in numbers]
        return GuardedKeys(self.keys[:, kept], self.slack[kept], tuple(self.owners[column] for column in kept))


@dataclass(frozen=True, eq=False)
class Guards:
    """All guarded keys: a value, so that a batch that does not stay leaves nothing behind.

    Attributes:
        layers: "layer" → its keys, a part a batch.
    """

    layers: Mapping[str, tuple[GuardedKeys, ...]] = field(default_factory=dict)
    _made: dict[str, tuple[int, Guarded]] = field(default_factory=dict)

    def joined(self, more: Mapping[str, GuardedKeys]) -> Guards:
        """With the keys of one more batch; what was factored grows by a block when it is next asked for."""
        layers = dict(self.layers)
        for layer, keys in more.items():
            layers[layer] = (*layers.get(layer, ()), keys)
        return Guards(layers, dict(self._made))

    def without(self, numbers: Collection[int]) -> Guards:
        """Without the keys of some edits: a later one wants something else of them."""
        there = {owner for parts in self.layers.values() for part in parts for owner in part.owners}
        if there.isdisjoint(numbers):
            return self
        return Guards({layer: tuple(part.without(numbers) for part in parts) for layer, parts in self.layers.items()})

    def over(self, places: Sequence[Place]) -> list[Place]:
        """Places whose metrics guard the keys of their layers."""
        return [replace(place, guarded=self._over(place)) for place in places]

    def _over(self, place: Place) -> Guarded | None:
        layer = str(place.layer)
        parts = self.layers.get(layer, ())
        if not parts:
            return None
        done, guarded = self._made.get(layer, (0, None))
        if guarded is None or guarded.inner is not place.metric:
            done, guarded = 0, Guarded.of(place.metric, parts[0].keys[:, :0], parts[0].slack[:0])
        if done < len(parts):
            keys = torch.cat([part.keys for part in parts[done:]], 1)
            guarded = guarded.joined(keys, torch.cat([part.slack for part in parts[done:]]))
        self._made[layer] = len(parts), guarded
        return guarded
