"""A vision transformer taken apart along its edges: passes in which every receiver has a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsmith.edge import PROJECTIONS
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.prune.edges.graph import EdgeGraph
from weightsmith.prune.removal import shape_of

_BATCH_BYTES = 2**28
"""Of activations that a batch may take."""


@dataclass(frozen=True, eq=False)
class _Attention:
    """An attention sublayer: its norm, the maps to queries, keys and values, and its output projection."""

    norm: nn.Module
    qkv: tuple[nn.Linear, nn.Linear, nn.Linear]
    output: nn.Linear
    head_width: int
    scaling: float

    def split(self, rows: Tensor) -> Tensor:
        """(n, heads, tokens, head width) of (n, tokens, heads · head width)."""
        return torch.unflatten(rows, -1, (-1, self.head_width)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(n, heads, tokens, head width) weighted values, of the same."""
        return F.scaled_dot_product_attention(query, key, value, scale=self.scaling)

    def written(self, z: Tensor) -> Tensor:
        """(n, heads, tokens, width): what each head adds to the stream, through its columns of the output projection."""
        columns = torch.unflatten(self.output.weight, 1, (-1, self.head_width))
        return torch.einsum("nhtd,whd->nhtw", z, columns)

    def rows(self, which: int) -> Tensor:
        """(heads, head width, width) weight of one of the three projections, by head."""
        return torch.unflatten(self.qkv[which].weight, 0, (-1, self.head_width))


@dataclass(frozen=True, eq=False)
class _Mlp:
    norm: nn.Module
    mlp: nn.Module


@dataclass(frozen=True, eq=False)
class EdgeNetwork:
    """A ViT image classifier taken apart along its edge graph.

    The stream that a receiver reads is the sum of what the senders before it wrote, and of the biases of the output
    projections before it: these are no head's, belong to no edge and are always there. An MLP's own bias goes with the MLP.

    Attributes:
        graph: its senders and receivers.
        sublayers: attentions and MLPs in order.
    """

    model: Model
    graph: EdgeGraph
    sublayers: tuple[_Attention | _Mlp, ...]

    @classmethod
    def of(cls, model: Model) -> EdgeNetwork:
        """Take a model apart.

        Raises:
            WeightsmithError: no ViT image classifier, or one with adapters around its maps.
        """
        graph, parts = EdgeGraph.of(model), model.family.parts
        assert parts is not None
        sublayers: list[_Attention | _Mlp] = []
        for layer, block in enumerate(model.blocks):
            if model.has("attn.z", layer):
                query, key, value, output = (_plain(model, block, path) for path in (*parts.qkv, parts.output))
                attention: Any = block.get_submodule(str(model.family.attention))
                norm, width = block.get_submodule(parts.norm1), int(attention.head_dim)
                sublayers.append(_Attention(norm, (query, key, value), output, width, float(attention.scaling)))
            if model.has("mlp.key", layer):
                sublayers.append(_Mlp(block.get_submodule(parts.norm2), block.get_submodule(parts.mlp)))
        return cls(model, graph, tuple(sublayers))

    @cached_property
    def cls_from(self) -> int:
        """The first sender whose writing reaches the logits through the CLS row alone."""
        layers = [node.layer for node in self.graph.senders if node.kind == "head"]
        last = layers[-1] if layers else -1
        return next((i for i, node in enumerate(self.graph.senders) if node.layer == last), 0)

    def batch_size(self) -> int:
        """Images whose activations fit into memory that is at hand, every sender and receiver having its own."""
        shape = shape_of(self.model)
        streams = len(self.graph.senders) + 2 * len(PROJECTIONS) * max((1, *shape.heads))
        parameter = next(self.model.module.parameters())
        return max(1, min(64, _BATCH_BYTES // (2 * streams * shape.tokens * shape.width * parameter.element_size())))

    def embed(self, pixels: Tensor) -> Tensor:
        """(n, tokens, width) what "embed" writes for uint8 images."""
        dtype = next(self.model.module.parameters()).dtype
        return self.model.embed(self.model.preprocess(pixels, self.model.device).to(dtype))

    def outputs(self, hidden: Tensor) -> Tensor:
        """(n, senders, tokens, width): what every sender writes when "embed" writes `hidden` (n, tokens, width)."""
        written = [hidden[:, None]]
        for sublayer in self.sublayers:
            if isinstance(sublayer, _Attention):
                normed = sublayer.norm(hidden)
                query, key, value = (sublayer.split(part(normed)) for part in sublayer.qkv)
                written.append(sublayer.written(sublayer.attend(query, key, value)))
                hidden = hidden + sublayer.output.bias
            else:
                written.append(sublayer.mlp(sublayer.norm(hidden))[:, None])
            hidden = hidden + written[-1].sum(1)
        return torch.cat(written, 1)

    def stream(self, written: Tensor) -> Tensor:
        """(n, tokens, width) what leaves the last block when the senders write (n, senders, tokens, width)."""
        biases = [sublayer.output.bias for sublayer in self.sublayers if isinstance(sublayer, _Attention)]
        return written.sum(1) + sum(biases, torch.zeros_like(written[0, 0, 0]))

    def run(self, hidden: Tensor, corrupted: Tensor, mask: Tensor) -> Tensor:
        """(n, classes) logits when receivers read the senders that the mask has, and of the others their corrupted writing.

        A sender that is read writes what it makes of its own, partly corrupted, input.

        Args:
            hidden: (n, tokens, width) what "embed" writes.
            corrupted: (n, senders, tokens, width), or 1 in place of n and tokens.
            mask: (receivers, senders) bool.
        """
        written, n_read = [hidden[:, None]], 0
        mask = mask.to(hidden)
        constant: Tensor = hidden.new_zeros(hidden.shape[-1])

        def read(count: int) -> Tensor:
            """(n, count, tokens, width) the streams of the next receivers."""
            nonlocal n_read
            so_far = torch.cat(written, 1)
            written[:] = [so_far]
            there = mask[n_read : n_read + count, : so_far.shape[1]]
            n_read += count
            instead = torch.einsum("rs,nstw->nrtw", 1 - there, corrupted[:, : so_far.shape[1]])
            return torch.einsum("rs,nstw->nrtw", there, so_far) + instead + constant

        for sublayer in self.sublayers:
            if isinstance(sublayer, _Attention):
                heads = sublayer.rows(0).shape[0]
                normed = sublayer.norm(read(3 * heads)).split(heads, 1)
                query, key, value = (
                    torch.einsum("nhtw,hdw->nhtd", rows, sublayer.rows(i)) + _bias(sublayer, i)
                    for i, rows in enumerate(normed)
                )
                written.append(sublayer.written(sublayer.attend(query, key, value)))
                constant = constant + sublayer.output.bias
            else:
                written.append(sublayer.mlp(sublayer.norm(read(1))))
        return self.model.read_out(read(1)[:, 0])

    def gradients(self, hidden: Tensor, loss: Callable[[Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The gradient of a loss with respect to what each receiver alone reads, sublayer by sublayer, from one backward pass.

        Where heads share a stream, their gradients are parted at the queries, keys and values and taken back through the norm
        one by one.

        Args:
            hidden: (n, tokens, width) what "embed" writes.
            loss: from (n, classes) logits to a sum over images.

        Yields:
            (number of the first receiver, (n, receivers of the sublayer, tokens, width)).
        """
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            found: list[tuple[Tensor, ...]] = []  # of each sublayer: its stream, and what is differentiated by
            for sublayer in self.sublayers:
                if isinstance(sublayer, _Attention):
                    normed = sublayer.norm(hidden)
                    parts = tuple(sublayer.split(part(normed)) for part in sublayer.qkv)
                    found.append((hidden, *parts))
                    hidden = hidden + sublayer.output(sublayer.attend(*parts).transpose(1, 2).flatten(2))
                else:
                    own = hidden.clone()  # so that the gradient past the MLP is not in it
                    found.append((hidden, own))
                    hidden = hidden + sublayer.mlp(sublayer.norm(own))
            last = hidden.clone()
            total = loss(self.model.read_out(last))
            by = [part for _, *parts in found for part in parts]
            gradients = list(torch.autograd.grad(total, [*by, last]))
        first = 0
        for sublayer, (stream, *_) in zip(self.sublayers, found, strict=True):
            if isinstance(sublayer, _Attention):
                three = [torch.einsum("nhtd,hdw->nhtw", gradients.pop(0), sublayer.rows(i)) for i in range(3)]
                gradient = _through_norm(sublayer.norm, stream.detach(), torch.cat(three, 1).detach())
            else:
                gradient = gradients.pop(0)[:, None]
            yield first, gradient
            first += gradient.shape[1]
        yield first, gradients.pop(0)[:, None]


def _through_norm(norm: nn.Module, stream: Tensor, gradient: Tensor) -> Tensor:
    """(n, receivers, tokens, width) gradients behind a norm of the stream (n, tokens, width), taken back before it."""
    with torch.enable_grad():
        own = stream[:, None].expand_as(gradient).requires_grad_()
        (before,) = torch.autograd.grad(norm(own), own, gradient)
    return before


def _bias(attention: _Attention, which: int) -> Tensor:
    """(heads, 1, head width) bias of one of the three projections; a ViT may project without."""
    bias: Tensor | None = attention.qkv[which].bias
    if bias is None:
        return attention.output.bias.new_zeros(())
    return torch.unflatten(bias, 0, (-1, 1, attention.head_width))


def _plain(model: Model, block: nn.Module, path: str) -> nn.Linear:
    """A linear map and nothing more, whose rows and columns may be cut."""
    module = block.get_submodule(path)
    if type(module) is not nn.Linear:
        raise WeightsmithError(
            f"{path} of {model.name} is a {type(module).__name__} and cannot be parted by head: merge adapters first"
        )
    return module
