"""`Edge`: one part of a vision transformer reading what another wrote into the residual stream, `head[0,1]->mlp[2]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weightsmith.errors import WeightsmithError, perhaps

PROJECTIONS = ("q", "k", "v")
"""What a head reads the stream for: its queries, its keys, its values."""

_NODE = re.compile(r"(?P<kind>[a-z]+)(\[(?P<layer>\d{1,7})(,(?P<head>\d{1,7}))?\])?(\.(?P<reads>[a-z]+))?")


_KINDS = ("embed", "head", "mlp", "logits")


@dataclass(frozen=True)
class Node:
    """A part that writes into the residual stream, or one that reads from it.

    Attributes:
        kind: "embed" (patches, CLS and positions) and "logits" (final norm and classifier) have no block; "head", "mlp".
        layer: block, counted from 0.
        head: counted from 0.
        reads: one of `PROJECTIONS`, of a head that reads; None of one that writes.

    Raises:
        WeightsmithError: an unknown kind, or numbers that it does not have.

    Examples:
        >>> str(Node("head", 3, 2, "q"))
        'head[3,2].q'
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    reads: str | None = None

    def __post_init__(self) -> None:
        wanted = {"embed": (False, False), "logits": (False, False), "mlp": (True, False), "head": (True, True)}
        given = (self.layer is not None, self.head is not None)
        projection = self.reads is None or (self.kind == "head" and self.reads in PROJECTIONS)
        if wanted.get(self.kind) != given or min(self.layer or 0, self.head or 0) < 0 or not projection:
            raise WeightsmithError(
                f"{self} is no part of a network: write embed, head[0,1], mlp[2] or logits, and head[0,1].q, .k or .v where "
                f"a head reads{perhaps(self.kind, _KINDS)}"
            )

    def __str__(self) -> str:
        numbers = ",".join(str(number) for number in (self.layer, self.head) if number is not None)
        return self.kind + (f"[{numbers}]" if numbers else "") + (f".{self.reads}" if self.reads else "")

    @classmethod
    def parse(cls, text: str) -> Node:
        """The node that prints as this text. Raises `WeightsmithError` where none does."""
        match = _NODE.fullmatch(text)
        if match is None:
            meant = perhaps(text.partition("[")[0], _KINDS)
            raise WeightsmithError(
                f"{text!r} names no part of a network: write embed, head[0,1], mlp[2] or logits{meant}"
            )
        layer, head = (None if match[name] is None else int(match[name]) for name in ("layer", "head"))
        return cls(match["kind"], layer, head, match["reads"])

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands in a pass: block, then attention before MLP."""
        ends = {"embed": -1.0, "logits": float("inf")}
        return (ends.get(self.kind, float(self.layer or 0)), int(self.kind == "mlp"))


@dataclass(frozen=True)
class Edge:
    """What `receiver` reads of what `sender` writes.

    Attributes:
        sender: "embed", a head or an MLP.
        receiver: the queries, keys or values of a head, an MLP, or "logits"; it comes behind the sender.

    Raises:
        WeightsmithError: a sender that only reads, a receiver that only writes, or one that is not behind the sender.

    Examples:
        >>> str(Edge.parse("embed->head[3,2].q"))
        'embed->head[3,2].q'
        >>> Edge(Node("mlp", 5), Node("logits")) == Edge.parse("mlp[5]->logits")
        True
    """

    sender: Node
    receiver: Node

    def __post_init__(self) -> None:
        writes = self.sender.kind != "logits" and self.sender.reads is None
        reads = self.receiver.kind != "embed" and (self.receiver.kind == "head") == (self.receiver.reads is not None)
        if not (writes and reads and self.sender.place < self.receiver.place):
            raise WeightsmithError(
                f"{self} is no edge: it goes from embed, a head or an MLP to head[3,2].q, .k or .v, an MLP or the logits "
                "further on"
            )

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    @classmethod
    def parse(cls, text: str) -> Edge:
        """The edge that prints as this text. Raises `WeightsmithError` where none does."""
        sender, arrow, receiver = text.partition("->")
        if not arrow:
            raise WeightsmithError(f"{text!r} names no edge: write one like head[0,1]->mlp[2] or embed->head[3,2].q")
        return cls(Node.parse(sender), Node.parse(receiver))
