"""From scores to what is kept: the cheapest units go first, up to a wanted number of multiplications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError


@dataclass(frozen=True, eq=False)
class Marks:
    """What each head and each neuron of the whole network is worth, as it was last scored.

    Attributes:
        whole: sizes of the network.
        heads, neurons: one array a block.
        cls_only: whether the smaller model computes CLS alone behind the last attention, which changes what a unit costs.
        multiple: of MLP widths.
    """

    whole: Shape
    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    cls_only: bool = True
    multiple: int = 16

    def macs(self, kept: Kept) -> int:
        """Multiply-adds of an image in what is kept."""
        return kept.shape(self.whole).macs(self.cls_only)

    def rounded(self, kept: Kept, within: Kept) -> Kept:
        """The same with MLP widths that are multiples, the best of what went coming back, of what another one keeps.

        Where less than half a multiple is left of an MLP, it goes whole.
        """
        scores = []
        for marks, there in zip(self.neurons, within.neurons, strict=True):
            some = np.full(len(marks), -1.0)  # scores are from 0
            some[list(there)] = marks[list(there)]
            scores.append(some.tolist())
        neurons = tuple(() if 2 * len(some) < self.multiple else some for some in kept.neurons)
        return Kept(kept.heads, neurons).rounded(scores, self.multiple)

    @cached_property
    def smallest(self) -> int:
        """Multiply-adds of the smallest model that there is: one head, the best of the cheapest block, and no MLP."""
        return min(
            self.macs(Kept(tuple((0,) if i == layer else () for i in range(len(self.heads))), ((),) * len(self.heads)))
            for layer, heads in enumerate(self.heads)
            if len(heads)
        )

    def path(self, kept: Kept) -> Path:
        """Smaller and smaller models below what is kept: units leave by score per multiply-add saved, cheapest first."""
        now = kept.shape(self.whole)
        at = {layer: place for place, layer in enumerate(kept.blocks)}
        units: list[tuple[float, int, int, int]] = []
        for half, (members, marks) in enumerate(((kept.heads, self.heads), (kept.neurons, self.neurons))):
            for layer, some in enumerate(members):
                if not some:
                    continue
                counts = list((now.heads, now.neurons)[half])
                counts[at[layer]] -= 1
                fewer = replace(now, heads=tuple(counts)) if half == 0 else replace(now, neurons=tuple(counts))
                saved = now.macs(self.cls_only) - fewer.macs(self.cls_only)
                units += [(float(marks[layer][one]) / saved, half, layer, one) for one in some]
        return Path(self, kept, tuple((half, layer, one) for _, half, layer, one in sorted(units)))


@dataclass(frozen=True, eq=False)
class Path:
    """Models that lie inside one another.

    Attributes:
        marks: by which they were ordered.
        start: the largest of them.
        order: (0 for a head, 1 for a neuron; block; which), the first to leave first.
    """

    marks: Marks
    start: Kept
    order: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.order)

    def after(self, count: int) -> Kept:
        """What is kept when so many have left, widths rounded up; the last head of all stays in any case."""
        gone = set(self.order[:count])
        heads = [tuple(i for i in some if (0, layer, i) not in gone) for layer, some in enumerate(self.start.heads)]
        neurons = [tuple(i for i in some if (1, layer, i) not in gone) for layer, some in enumerate(self.start.neurons)]
        if not any(heads):
            _, layer, head = next(unit for unit in reversed(self.order) if unit[0] == 0)
            heads[layer] = (head,)
        return self.marks.rounded(Kept(tuple(heads), tuple(neurons)), self.start)

    def at(self, macs: float) -> Kept:
        """The largest of the models with at most so many multiply-adds.

        Raises:
            WeightsmithError: none is so small.
        """
        count = first_true(lambda n: self.marks.macs(self.after(n)) <= macs, len(self))
        if count is None:
            raise WeightsmithError(
                f"no model has {macs:.4g} multiplications: embedding, classifier and one head alone have "
                f"{self.marks.smallest:.4g}"
            )
        return self.after(count)


def first_true(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest n from 0 to `most` of which it holds, where it holds of all after it too; None where it never does."""
    if not holds(most):
        return None
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
