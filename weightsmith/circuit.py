"""`Unit` and `Kept`: the parts of a vision transformer that can be removed, and which of them stay; `Shape` counts them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from weightsmith.errors import WeightsmithError, did_you_mean, perhaps

UNIT_KINDS = ("block", "attn", "mlp", "head", "neurons")
"""A whole block, its attention sublayer, its MLP sublayer, one head, a group of the MLP's neurons."""

_UNIT = re.compile(r"(?P<kind>[a-z]+)\[(?P<layer>\d{1,7})(,(?P<members>[\d,-]+))?\]")


@dataclass(frozen=True)
class Shape:
    """Sizes of a pre-norm vision transformer, from which its cost is counted.

    Attributes:
        tokens: of an image, CLS included.
        width: of the residual stream.
        head_width: entries of one head's queries, keys and values.
        patch: numbers in one patch, channels · side².
        classes: of the classifier.
        heads: of each block's attention, 0 where it has none.
        neurons: of each block's MLP, 0 where it has none.
        qkv_bias: whether the projections to queries, keys and values have a bias.
    """

    tokens: int
    width: int
    head_width: int
    patch: int
    classes: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    qkv_bias: bool = True

    def macs(self, cls_only: bool = False) -> int:
        """Multiply-adds of one image: patch embedding, linear maps, attention scores and values, classifier.

        Norms, activations, softmax and biases are left out, as is usual.

        Args:
            cls_only: from the last attention on, only the CLS row is computed.
        """
        total = (self.tokens - 1) * self.patch * self.width + self.width * self.classes
        last = max((layer for layer, heads in enumerate(self.heads) if heads), default=-1)
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            rows = 1 if cls_only and layer >= last else self.tokens
            inner = heads * self.head_width
            total += 2 * self.tokens * self.width * inner  # keys and values
            total += 2 * rows * self.width * inner  # queries and the output projection
            total += 2 * rows * self.tokens * inner  # scores and weighted values
            total += 2 * rows * self.width * neurons
        return total

    def parameters(self) -> int:
        """Numbers in the weights, embeddings and norms included."""
        w = self.width
        total = self.patch * w + w + w + self.tokens * w  # patch embedding, CLS, positions
        total += 2 * w + w * self.classes + self.classes  # final norm and classifier
        for heads, neurons in zip(self.heads, self.neurons, strict=True):
            inner = heads * self.head_width
            if heads:
                total += 2 * w + 4 * w * inner + w + (3 * inner if self.qkv_bias else 0)
            if neurons:
                total += 2 * w + 2 * w * neurons + neurons + w
        return total

    def units(self, kind: str, group: int = 16) -> list[Unit]:
        """Every unit of a kind, block by block; neurons in groups of `group` neighbours.

        Raises:
            WeightsmithError: an unknown kind, or a group below 1.
        """
        if kind not in UNIT_KINDS or group < 1:
            what = f"groups of {group} neurons" if kind in UNIT_KINDS else f"the kind of unit {kind!r}"
            raise WeightsmithError(f"there are no {what}: {did_you_mean(kind, UNIT_KINDS)}, groups of 1 or more")
        found: list[Unit] = []
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            if kind == "head":
                found += [Unit("head", layer, (head,)) for head in range(heads)]
            elif kind == "neurons":
                starts = range(0, neurons, group)
                found += [Unit("neurons", layer, tuple(range(i, min(i + group, neurons)))) for i in starts]
            elif {"block": heads or neurons, "attn": heads, "mlp": neurons}[kind]:
                found.append(Unit(kind, layer))
        return found


@dataclass(frozen=True)
class Unit:
    """A part of a network that is kept or removed as a whole.

    Attributes:
        kind: one of `UNIT_KINDS`.
        layer: block, counted from 0.
        members: the head, or the neurons, sorted; empty for whole sublayers and blocks.

    Raises:
        WeightsmithError: an unknown kind, members where there are none or none where there must be, negative numbers.

    Examples:
        >>> str(Unit("neurons", 2, (0, 1, 2, 7)))
        'neurons[2,0-2,7]'
        >>> Unit.parse("head[3,5]")
        Unit(kind='head', layer=3, members=(5,))
    """

    kind: str
    layer: int
    members: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in UNIT_KINDS:
            raise WeightsmithError(f"there is no unit of kind {self.kind!r}: {did_you_mean(self.kind, UNIT_KINDS)}")
        object.__setattr__(self, "members", tuple(sorted(set(self.members))))
        wanted = {"head": len(self.members) == 1, "neurons": len(self.members) > 0}
        if not wanted.get(self.kind, not self.members) or self.layer < 0 or min(self.members, default=0) < 0:
            raise WeightsmithError(
                f"the unit {self.kind} of block {self.layer} with the members {list(self.members)} is none: a head has one "
                "member, neurons have at least one, the others none, and all count from 0"
            )

    def __str__(self) -> str:
        members = f",{_ranges(self.members)}" if self.members else ""
        return f"{self.kind}[{self.layer}{members}]"

    @classmethod
    def parse(cls, text: str) -> Unit:
        """The unit that prints as this text. Raises `WeightsmithError` where none does."""
        match = _UNIT.fullmatch(text)
        if match is None:
            meant = perhaps(text.partition("[")[0], UNIT_KINDS)
            raise WeightsmithError(
                f"{text!r} names no unit: write block[3], attn[3], head[3,5] or neurons[3,0-15]{meant}"
            )
        return cls(match["kind"], int(match["layer"]), _members(match["members"] or ""))


@dataclass(frozen=True)
class Kept:
    """What stays of a network: heads and neurons, block by block.

    A block without heads has no attention any more, one without neurons no MLP, and one without both is gone.

    Attributes:
        heads: the heads of each block that stay, sorted.
        neurons: the neurons of each block's MLP that stay, sorted.

    Raises:
        WeightsmithError: lists of different length, or a negative number.
    """

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            object.__setattr__(self, name, tuple(tuple(sorted(set(members))) for members in getattr(self, name)))
        if len(self.heads) != len(self.neurons) or min(chain(*self.heads, *self.neurons), default=0) < 0:
            raise WeightsmithError(
                f"what is kept names heads of {len(self.heads)} blocks and neurons of {len(self.neurons)}: name both of "
                "every block, counted from 0"
            )

    @classmethod
    def everything(cls, shape: Shape) -> Kept:
        """All heads and neurons of a network."""
        return cls(tuple(tuple(range(n)) for n in shape.heads), tuple(tuple(range(n)) for n in shape.neurons))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that stay, in order."""
        return tuple(layer for layer in range(len(self.heads)) if self.heads[layer] or self.neurons[layer])

    def without(self, *units: Unit) -> Kept:
        """What stays when these units are removed as well; what is gone already may be named again.

        Raises:
            WeightsmithError: a unit of a block that is not there.
        """
        heads, neurons = list(self.heads), list(self.neurons)
        for unit in units:
            layer = unit.layer
            if layer >= len(heads):
                raise WeightsmithError(f"the unit {unit} is of block {layer}: there are blocks 0 to {len(heads) - 1}")
            gone = frozenset(unit.members)
            if unit.kind in ("block", "attn", "head"):
                heads[layer] = tuple(head for head in heads[layer] if unit.kind == "head" and head not in gone)
            if unit.kind in ("block", "mlp", "neurons"):
                neurons[layer] = tuple(one for one in neurons[layer] if unit.kind == "neurons" and one not in gone)
        return Kept(tuple(heads), tuple(neurons))

    def rounded(
        self, scores: Sequence[Sequence[float]], multiple: int = 16, towards: Literal["more", "fewer"] = "more"
    ) -> Kept:
        """The same with MLP widths that are multiples of `multiple`: processors are slower at widths in between.

        Towards more, the best scored of the removed neurons come back, so that nothing of what was chosen is lost; towards
        fewer, the worst scored of the kept ones go too, but never the last `multiple`. An MLP that was removed stays so,
        and no width exceeds the whole one.

        Args:
            scores: of every neuron of each block, larger is better.

        Raises:
            WeightsmithError: scores that are not one a neuron, or a multiple below 1.
        """
        if multiple < 1 or len(scores) != len(self.neurons):
            raise WeightsmithError(
                f"widths cannot be rounded to {multiple} with scores of {len(scores)} blocks: give a multiple from 1 and "
                f"scores of all {len(self.neurons)} blocks"
            )
        rounded: list[tuple[int, ...]] = []
        for layer, (kept, marks) in enumerate(zip(self.neurons, scores, strict=True)):
            if kept and kept[-1] >= len(marks):
                raise WeightsmithError(
                    f"block {layer} keeps neuron {kept[-1]} and has {len(marks)} scores: give one score a neuron"
                )
            up = -(-len(kept) // multiple)
            steps = up if towards == "more" else min(up, max(1, len(kept) // multiple))
            count = min(steps * multiple, len(marks)) if kept else 0
            first = frozenset(kept)
            order = sorted(range(len(marks)), key=lambda one: (one not in first, -marks[one], one))
            rounded.append(tuple(order[:count]))
        return Kept(self.heads, tuple(rounded))

    def shape(self, whole: Shape) -> Shape:
        """Sizes of what stays of a network of the given shape, blocks that are gone left out.

        Raises:
            WeightsmithError: a head or neuron that the network does not have.
        """
        if len(self.heads) != len(whole.heads):
            raise WeightsmithError(
                f"what is kept is said of {len(self.heads)} blocks and the network has {len(whole.heads)}: say it of each"
            )
        for layer in range(len(self.heads)):
            for what, kept, there in (
                ("head", self.heads[layer], whole.heads[layer]),
                ("neuron", self.neurons[layer], whole.neurons[layer]),
            ):
                if kept and kept[-1] >= there:
                    raise WeightsmithError(
                        f"{what} {kept[-1]} of block {layer} cannot be kept: the block has {there} of them, counted from 0"
                    )
        heads = tuple(len(self.heads[layer]) for layer in self.blocks)
        return replace(whole, heads=heads, neurons=tuple(len(self.neurons[layer]) for layer in self.blocks))

    def to_json(self) -> dict[str, list[str]]:
        """JSON values: one text a block, `0-3,7`."""
        return {"heads": [_ranges(one) for one in self.heads], "neurons": [_ranges(one) for one in self.neurons]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Kept:
        """What `to_json` gave. Raises `WeightsmithError` for anything else."""
        try:
            heads, neurons = (tuple(_members(text) for text in value[name]) for name in ("heads", "neurons"))
        except (KeyError, TypeError, AttributeError) as error:
            raise WeightsmithError(
                f"this says not what is kept of a network ({error}): give heads and neurons, one text like 0-3,7 a block"
            ) from error
        return cls(heads, neurons)


def _ranges(members: Sequence[int]) -> str:
    """Sorted numbers as text, neighbours together: 0-3,7."""
    pieces: list[str] = []
    for first, last in _runs(members):
        pieces.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(pieces)


def _runs(members: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for i in range(1, len(members) + 1):
        if i == len(members) or members[i] != members[i - 1] + 1:
            yield members[start], members[i - 1]
            start = i


def _members(text: str) -> tuple[int, ...]:
    """What `_ranges` printed."""
    if text and re.fullmatch(r"\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*", text) is None:
        raise WeightsmithError(f"{text!r} is no list of numbers: write one like 0-3,7")
    pairs = [piece.partition("-") for piece in text.split(",")] if text else []
    return tuple(chain.from_iterable(range(int(first), int(last or first) + 1) for first, _, last in pairs))
