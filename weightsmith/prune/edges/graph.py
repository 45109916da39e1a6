"""Who reads whose writing in a vision transformer: its senders, receivers and edges."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightsmith.edge import PROJECTIONS, Edge, Node
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.models import Model
from weightsmith.prune.removal import shape_of


@dataclass(frozen=True)
class EdgeGraph:
    """Senders and receivers in the order in which a pass reaches them.

    A head has three receivers, for its queries, keys and values, as in ACDC (Conmy et al. 2023) and EAP (Syed et al. 2023): the
    three may need different senders. A sender is one part whoever reads it.

    Attributes:
        senders: "embed", then block by block the heads and the MLP.
        receivers: block by block the queries of every head, their keys, their values and the MLP; "logits" last.
        reads: a receiver reads the first so many senders.
    """

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    reads: tuple[int, ...]

    @classmethod
    def of(cls, model: Model) -> EdgeGraph:
        """Of a ViT image classifier, narrowed or whole. Raises `WeightsmithError` for any other model."""
        shape = shape_of(model)
        senders, receivers, reads = [Node("embed")], list[Node](), list[int]()
        for layer, (heads, neurons) in enumerate(zip(shape.heads, shape.neurons, strict=True)):
            receivers += [Node("head", layer, head, part) for part in PROJECTIONS for head in range(heads)]
            reads += [len(senders)] * (len(PROJECTIONS) * heads)
            senders += [Node("head", layer, head) for head in range(heads)]
            if neurons:
                receivers.append(Node("mlp", layer))
                reads.append(len(senders))
                senders.append(Node("mlp", layer))
        return cls(tuple(senders), (*receivers, Node("logits")), (*reads, len(senders)))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, receiver by receiver."""
        pairs = zip(self.receivers, self.reads, strict=True)
        return tuple(Edge(sender, receiver) for receiver, count in pairs for sender in self.senders[:count])

    @cached_property
    def there(self) -> Tensor:
        """(receivers, senders) bool, where an edge is."""
        return torch.arange(len(self.senders))[None] < torch.tensor(self.reads)[:, None]

    @cached_property
    def _numbers(self) -> dict[Edge, int]:
        return {edge: i for i, edge in enumerate(self.edges)}

    def mask(self, kept: Collection[Edge]) -> Tensor:
        """(receivers, senders) bool, true at the edges given.

        Raises:
            WeightsmithError: an edge that the network does not have.
        """
        chosen = torch.zeros(len(self.edges), dtype=torch.bool)
        for edge in kept:
            if edge not in self._numbers:
                raise WeightsmithError(
                    f"the network has no edge {edge}: keep edges that EdgeGraph.of(model).edges lists"
                    f"{perhaps(str(edge), map(str, self.edges))}"
                )
            chosen[self._numbers[edge]] = True
        table = torch.zeros_like(self.there)
        table[self.there] = chosen
        return table
