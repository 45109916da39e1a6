"""What is behind the last attention of a vision transformer, at CLS: a small network of its own.

Behind the last block's attention nothing mixes tokens, so CLS alone decides. Its residual stream and attention entering
the output projection do not depend on that projection, the MLP or the classifier; one pass over the images gives both, and
whatever an edit there does is then a small MLP away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightsmith.batches import Fitting
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.site import Site


@dataclass(frozen=True, eq=False)
class State:
    """What enters the tail: residual stream entering the last block (n, width), and attention before its projection."""

    stream: Tensor
    attention: Tensor

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, which: Tensor) -> State:
        return State(self.stream[which], self.attention[which])

    def double(self) -> State:
        return State(self.stream.double(), self.attention.double())

    @classmethod
    def of(cls, model: Model, batches: Iterator[Tensor]) -> State:
        """The state of uint8 images, batch by batch."""
        last = model.n_layers - 1
        sites = [Site("resid.in", last, tokens="cls"), Site("attn.z", last, tokens="cls")]

        @torch.no_grad()
        def read(pixels: Tensor) -> list[Tensor]:
            seen = record(model, model.preprocess(pixels, model.device), sites)
            return [seen[site].flatten(1).float() for site in sites]

        found = Fitting("images are read").each(read, ((pixels,) for pixels in batches))
        return cls(*(torch.cat(values) for values in zip(*found, strict=True)))

    @staticmethod
    def joined(*states: State) -> State:
        return State(torch.cat([s.stream for s in states]), torch.cat([s.attention for s in states]))


def has_tail(model: Model) -> bool:
    """Whether it is a vision transformer with a CLS token and a plain two-layer MLP."""
    family = model.family
    return (
        family.reads == "images" and family.cls is not None and family.parts is not None and family.parts.up is not None
    )


class Tail(nn.Module):
    """A copy of the last block's output projection, norm and MLP, the final norm and the classifier.

    Raises:
        WeightsmithError: a model that is no vision transformer with a CLS token and a plain two-layer MLP.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        family, parts = model.family, model.family.parts
        if not has_tail(model) or parts is None or parts.up is None:
            raise WeightsmithError(
                f"{model.name} is a {family.title}, and this editor needs a vision transformer with a CLS token: "
                "take alphaedit or memit"
            )
        block = f"{family.blocks}.{model.n_layers - 1}"
        module = model.module
        self.output = copy.deepcopy(module.get_submodule(f"{block}.{parts.output}")).float()
        self.norm = copy.deepcopy(module.get_submodule(f"{block}.{parts.norm2}")).float()
        self.mlp = copy.deepcopy(module.get_submodule(f"{block}.{parts.mlp}")).float()
        self.final = nn.Sequential(*(copy.deepcopy(module.get_submodule(path)).float() for path in family.tail))
        self.classifier = copy.deepcopy(module.get_submodule(family.classifier)).float()
        inner = f"{parts.mlp}."
        down = family.linear["mlp.value"].module
        self.up_name, self.down_name = (f"mlp.{path.removeprefix(inner)}" for path in (parts.up, down))
        self.names = {
            "output": f"{block}.{parts.output}",
            self.up_name: f"{block}.{parts.up}",
            self.down_name: f"{block}.{down}",
            "classifier": family.classifier,
        }
        """Module of the tail → module of the network, for the linear maps that an edit may change."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def linear(self, name: str) -> nn.Linear:
        """A linear map of the tail by name."""
        module = self.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    def middle(self, state: State) -> Tensor:
        """(n, width) the residual stream between attention and MLP."""
        hidden: Tensor = state.stream + self.output(state.attention)
        return hidden

    def read_out(self, hidden: Tensor) -> Tensor:
        """(n, classes) logits of what leaves the block."""
        logits: Tensor = self.classifier(self.final(hidden))
        return logits

    def forward(self, state: State) -> Tensor:
        middle = self.middle(state)
        return self.read_out(middle + self.mlp(self.norm(middle)))

    def keys(self, normed: Tensor) -> Tensor:
        """(n, neurons) what enters the down-projection."""
        with self.inputs(self.down_name) as seen:
            self.mlp(normed)
        return seen[self.down_name]

    @contextmanager
    def inputs(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """What enters these modules in the passes inside the block, the last pass's."""
        seen: dict[str, Tensor] = {}

        def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, given: seen.__setitem__(name, given[0])

        handles = [self.get_submodule(name).register_forward_pre_hook(look(name)) for name in names]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
