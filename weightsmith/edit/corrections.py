"""What a batch of requests is to an editor, images or text: keys, present values, wanted values, and how it went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from weightsmith.edit.targets import TargetOptions, TargetValues
from weightsmith.models import Model
from weightsmith.site import Site


@dataclass(frozen=True)
class Goal:
    """Where the wanted values are stated.

    Attributes:
        kind: "resid.out" (behind the last edited block), a value site's kind, or "classifier.value".
        layer: block, None for the classifier.
    """

    kind: str
    layer: int | None


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over the requests gives at a place.

    Attributes:
        keys: (E, d), averaged over each request's contexts.
        bare: (E, d) the keys of the request alone.
        present: (E, width) values at the goal.
        weights: (E,) Ω, how much each counts; None is one each.
    """

    keys: Tensor
    bare: Tensor
    present: Tensor
    weights: Tensor | None = None


class Corrections(Protocol):
    """A batch of E requests, read on one model or another."""

    def __len__(self) -> int: ...

    def part(self, first: int, end: int) -> Corrections:
        """The requests from `first` up to `end`."""
        ...

    def leads(self, model: Model) -> Tensor:
        """(E,) by how much each wanted answer leads, the smallest over its tokens."""
        ...

    def measure(self, model: Model, kind: str, layer: int | None, goal: Goal) -> Measured:
        """Keys of the linear map that ends at `kind`, and present values at the goal."""
        ...

    def in_contexts(self, model: Model, key: Site, value: Site) -> tuple[Tensor, Tensor, Tensor]:
        """(keys (n, d), values (n, width), wanted tokens or classes (n,)) at the lookup token, none averaged.

        A row for each token of each answer in each context, or for each view of each image.
        """
        ...

    def columns(self, layer: int | None) -> list[str]:
        """The name of the request that each row of `measure` belongs to; of an answer, the classifier has a row a token."""
        ...

    def wanted(self, model: Model, goal: Goal, options: TargetOptions) -> TargetValues:
        """Values at the goal with which every margin is met."""
        ...

    def at_head(self, model: Model) -> tuple[Tensor, Tensor]:
        """(features (n, width) that enter the classifier, wanted classes (n,)); one an image, or one an answer's token."""
        ...

    def loss(self, model: Model, which: Tensor) -> Tensor:
        """(len(which),) negative log-likelihood of the wanted answers, with gradients, of the requests at `which`."""
        ...

    def answers(self, model: Model) -> list[dict[str, Any]]:
        """What the model says to each request now: "answer", "margin" and "success"."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """What each request is: "sample" and "target"."""
        ...
