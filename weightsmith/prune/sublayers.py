"""One attention or MLP with some of its members: what `removed` writes into a smaller model, and trials run in passing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError, WrongWeightsError
from weightsmith.models import Model
from weightsmith.prune.fold import folded
from weightsmith.prune.statistics import KeyStatistics

BLOCKS = "vit.layers"
POSITIONS = "vit.embeddings.position_embeddings"


@dataclass(frozen=True)
class Sublayer:
    """Modules of an attention or MLP: a norm, maps whose rows are cut, and one whose columns are."""

    norm: str
    rows: tuple[str, ...]
    columns: str
    keys: str


ATTENTION = Sublayer(
    "layernorm_before", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj", "attn.z"
)
MLP = Sublayer("layernorm_after", ("mlp.fc1",), "mlp.fc2", "mlp.key")


def last_attention(kept: Kept) -> int:
    """The last block that keeps a head; from there on only CLS is read.

    Raises:
        WeightsmithError: no head is kept.
    """
    if not any(kept.heads):
        raise WeightsmithError("no patch reaches the classifier of a model without attention: keep at least one head")
    return max(layer for layer, heads in enumerate(kept.heads) if heads)


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What is left of one sublayer.

    Attributes:
        tensors: by their name in the block, without the bias of the map whose columns are cut; empty where nothing is left.
        bias: (width,) of that map; where nothing is left, the constant that the sublayer then adds to the stream.
    """

    tensors: dict[str, Tensor]
    bias: Tensor


class Narrower:
    """Cuts and folds sublayers of one network; what was asked last is kept, up to `memory` bytes, and not solved again.

    Args:
        statistics: of the network's keys; None only where `fold` is none or nothing is removed.
        fold, ridge, cls_weight: as for `removed`.
        memory: bytes of folded maps that are kept.

    Raises:
        WrongWeightsError: statistics of another model.
        WeightsmithError: a `cls_weight` outside [0, 1].
    """

    def __init__(
        self,
        model: Model,
        whole: Shape,
        statistics: KeyStatistics | None,
        fold: str,
        ridge: float,
        cls_weight: float,
        memory: int = 0,
    ) -> None:
        if not 0 <= cls_weight <= 1:
            raise WeightsmithError(f"cls_weight={cls_weight} is no share: give 0 to 1")
        if statistics is not None:
            check_weights(model, statistics)
        self.state = model.module.state_dict()
        self.whole, self.statistics = whole, statistics
        self.fold, self.ridge, self.cls_weight = fold, ridge, cls_weight
        self._memory, self._held = memory, 0
        self._known: OrderedDict[tuple[Sublayer, int, tuple[int, ...], float], Narrowed] = OrderedDict()

    def members(self, sublayer: Sublayer, layer: int) -> int:
        """Heads or neurons of the whole sublayer; 0 where there is none."""
        return (self.whole.heads if sublayer is ATTENTION else self.whole.neurons)[layer]

    def narrowed(self, sublayer: Sublayer, layer: int, kept: Kept) -> Narrowed:
        """The sublayer with what is kept of it. Raises `WeightsmithError` where no head of the whole network is kept."""
        stay = (kept.heads if sublayer is ATTENTION else kept.neurons)[layer]
        # From the last attention on only the classifier reads the stream, and it reads CLS.
        weight_of_cls = self.cls_weight if layer < last_attention(kept) else 1.0
        key = (sublayer, layer, stay, weight_of_cls)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._solved(*key)
        size = sum(tensor.nbytes for tensor in (*found.tensors.values(), found.bias))
        if size <= self._memory:
            self._known[key] = found
            self._held += size
            while self._held > self._memory:
                _, old = self._known.popitem(last=False)
                self._held -= sum(tensor.nbytes for tensor in (*old.tensors.values(), old.bias))
        return found

    def _solved(self, sublayer: Sublayer, layer: int, stay: tuple[int, ...], weight_of_cls: float) -> Narrowed:
        old = f"{BLOCKS}.{layer}."
        if sublayer is ATTENTION:
            stay = entries(stay, self.whole.head_width)
        down = old + sublayer.columns
        weight, bias = folded(
            self.state[f"{down}.weight"],
            self.state[f"{down}.bias"],
            stay,
            None if self.statistics is None else self.statistics.at(sublayer.keys, layer, weight_of_cls),
            self.fold,
            self.ridge,
        )
        if not stay:
            return Narrowed({}, bias)
        tensors = _cut(self.state, old, sublayer, stay)
        tensors[f"{sublayer.columns}.weight"] = weight.to(self.state[f"{down}.weight"])
        return Narrowed(tensors, bias)


def check_weights(model: Model, statistics: KeyStatistics) -> None:
    """Raise `WrongWeightsError` for statistics of another model."""
    if statistics.fingerprint != model.fingerprint():
        raise WrongWeightsError(
            f"these key statistics are of other weights than {model.name}'s: take them of the model that is narrowed"
        )


def entries(heads: Sequence[int], width: int) -> tuple[int, ...]:
    """The entries of these heads, which lie side by side."""
    return tuple(entry for head in heads for entry in range(head * width, (head + 1) * width))


def _cut(state: dict[str, Tensor], old: str, sublayer: Sublayer, stay: Sequence[int]) -> dict[str, Tensor]:
    """The norm, and the rows that stay of the maps that read it, by their name in the block."""
    which = torch.tensor(list(stay), dtype=torch.long)
    cut = {f"{sublayer.norm}.{name}": state[f"{old}{sublayer.norm}.{name}"] for name in ("weight", "bias")}
    for path in sublayer.rows:
        for name in ("weight", "bias"):
            if f"{old}{path}.{name}" in state:  # a ViT may project without biases
                tensor = state[f"{old}{path}.{name}"]
                cut[f"{path}.{name}"] = tensor[which.to(tensor.device)]
    return cut
