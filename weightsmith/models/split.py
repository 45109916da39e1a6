"""A transformer taken apart: its blocks run in parts, so that only what a patch changes need be computed again.

The modules are the network's own; only the order in which rows pass through them is ours. Families whose table has
`parts` can be taken apart: pre-norm blocks, y = m + mlp(norm2(m)) with m = x + output(attention(norm1(x))).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsmith.models.bound import linear_shape
from weightsmith.models.model import Model

Rotation = tuple[Tensor, Tensor]
"""(cos, sin) of the rotary angles, each (tokens, head width)."""


def _is_plain(module: nn.Module) -> bool:
    """Whether the module is a linear map and nothing more: an adapter around one has a `weight` that is not all it adds."""
    from transformers.pytorch_utils import Conv1D

    return type(module) in (nn.Linear, Conv1D) and module.bias is not None


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm block in parts.

    Attributes:
        norm1, norm2, mlp, output: its modules.
        qkv: the projections to queries, keys and values, or one that gives all three.
        widths: entries of queries, keys and values at one token.
        head_width: entries of one head.
        scaling: of the attention's scores.
        causal: tokens attend to themselves and earlier ones only.
        window: how many of these, where they do not attend to all.
    """

    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    output: nn.Module
    qkv: tuple[nn.Module, ...]
    widths: tuple[int, int, int]
    head_width: int
    scaling: float
    causal: bool
    window: int | None

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, rows, ·) of the rows `hidden` (n, rows, width), heads side by side, not rotated."""
        normed = self.norm1(hidden)
        if len(self.qkv) == 1:
            query, key, value = torch.split(self.qkv[0](normed), list(self.widths), -1)
            return query, key, value
        query, key, value = (module(normed) for module in self.qkv)
        return query, key, value

    def project_one(self, hidden: Tensor, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, with the query (n, 1, ·) of one row only."""
        normed = self.norm1(hidden)
        at = normed[:, row : row + 1]
        if len(self.qkv) == 3:
            query, key, value = self.qkv[0](at), self.qkv[1](normed), self.qkv[2](normed)
            return query, key, value
        if not _is_plain(self.qkv[0]):
            query, key, value = torch.split(self.qkv[0](normed), list(self.widths), -1)
            return query[:, row : row + 1], key, value
        query = self.qkv[0](at)[..., : self.widths[0]]
        bias, weight = self.qkv[0].get_parameter("bias"), self.qkv[0].get_parameter("weight").data
        weight = weight.mT if isinstance(self.qkv[0], nn.Linear) else weight
        both = torch.addmm(bias[self.widths[0] :], normed.flatten(0, 1), weight[:, self.widths[0] :])
        key, value = torch.split(both.view(*normed.shape[:2], -1), list(self.widths[1:]), -1)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, first: int | None) -> Tensor:
        """What each head gives, (n, query rows, heads · head width): input of the output projection.

        Args:
            query: (n, query rows, ·) rotated; key, value: (n, tokens, ·) of all tokens.
            first: the token of the first query row, in a causal block; the others follow it. None attends to all.
        """
        q, k, v = (torch.unflatten(part, -1, (-1, self.head_width)).transpose(1, 2) for part in (query, key, value))
        rows, tokens = q.shape[2], k.shape[2]
        mask = None
        windowed = self.window is not None and tokens > self.window
        whole = first == 0 and rows == tokens and not windowed
        if first is not None and not whole and (windowed or not (rows == 1 and first == tokens - 1)):
            places = torch.arange(tokens, device=q.device)
            behind = places[first : first + rows, None] - places[None, :]
            mask = (behind >= 0) & (behind < (self.window or tokens))
        grouped = q.shape[1] != k.shape[1]
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=whole and rows > 1, scale=self.scaling, enable_gqa=grouped
        )
        return z.transpose(1, 2).flatten(2)

    def macs(
        self, tokens: int, *, queries: int = 0, keys: int = 0, attended: int = 0, outputs: int = 0, mlps: int = 0
    ) -> float:
        """Multiply-adds of projecting so many rows to queries, and to keys and values, and of so many rows behind them.

        Args:
            tokens: that each of the `attended` query rows attends to.
            outputs, mlps: rows through the output projection and through the MLP.
        """
        inner, width = linear_shape(self.output)
        in_mlp = sum(parameter.numel() for parameter in self.mlp.parameters() if parameter.ndim == 2)
        projected = width * (queries * self.widths[0] + keys * sum(self.widths[1:]))
        return float(projected + 2 * attended * tokens * self.widths[0] + outputs * inner * width + mlps * in_mlp)


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass of n inputs left in each block.

    Attributes:
        logits: (n, classes).
        kept: kind of site → one (n, tokens, ·) tensor a block. "query" and "key" are rotated, unlike `attn.q`, `attn.k`.
    """

    logits: Tensor
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def at(self, kind: str, layer: int) -> Tensor:
        return self.kept[kind][layer]


@dataclass(frozen=True, eq=False)
class Split:
    """A network taken apart for inputs of one number of tokens.

    Attributes:
        blocks: first to last.
        tokens: of the inputs.
        read_at: the one token that the classifier reads behind the last block.
        rotation: (cos, sin), None where positions are embedded.
    """

    model: Model
    blocks: tuple[Block, ...]
    tokens: int
    read_at: int
    rotation: Rotation | None

    @staticmethod
    def fits(model: Model) -> bool:
        """Whether the model can be taken apart: its family says how, its blocks are whole, no hook of a user's is passed by.

        A hook on a module that is run in parts, or not at all, would see other activations than in a whole pass.
        """
        if model.family.parts is None or model.family.pool is None:
            return False
        if not all(model.has(kind, layer) for kind in ("attn.z", "mlp.key") for layer in range(model.n_layers)):
            return False
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        return not any(getattr(module, kind) for module in model.module.modules() for kind in kinds)

    @classmethod
    def of(cls, model: Model, hidden: Tensor) -> Split:
        """Take a model apart for inputs that enter the first block as `hidden` (n, tokens, width)."""
        family = model.family
        assert family.parts is not None
        assert family.attention is not None
        tokens = hidden.shape[1]
        blocks: list[Block] = []
        for layer, block in enumerate(model.blocks):
            attention = block.get_submodule(family.attention)
            head_width = int(getattr(attention, str(family.head_width)))
            widths = tuple(model.n_heads(layer, kind) * head_width for kind in ("attn.q", "attn.k", "attn.v"))
            parts = family.parts
            blocks.append(
                Block(
                    norm1=block.get_submodule(parts.norm1),
                    norm2=block.get_submodule(parts.norm2),
                    mlp=block.get_submodule(parts.mlp),
                    output=block.get_submodule(parts.output),
                    qkv=tuple(block.get_submodule(path) for path in parts.qkv),
                    widths=(widths[0], widths[1], widths[2]),
                    head_width=head_width,
                    scaling=float(getattr(attention, "scaling", head_width**-0.5)),
                    causal=family.causal,
                    window=model.window(layer),
                )
            )
        rotation: Rotation | None = None
        if family.rotary is not None:
            places = torch.arange(tokens, device=hidden.device)[None]
            cos, sin = model.module.get_submodule(family.rotary)(hidden, places)
            rotation = cos[0], sin[0]
        read_at = tokens - 1 if family.pool == "last" else int(family.cls or 0)
        return cls(model, tuple(blocks), tokens, read_at, rotation)

    def rotate(self, rows: Tensor, places: Tensor | None = None) -> Tensor:
        """Queries or keys (n, rows, ·) turned by the angles of their positions `places` ((rows,) or (n, rows)).

        Rotary embedding (Su et al., RoFormer, 2021, eq. 34) in the half-split layout of Llama: x·cos + turned(x)·sin.
        """
        if self.rotation is None:
            return rows
        cos, sin = (part if places is None else part[places] for part in self.rotation)
        heads = torch.unflatten(rows, -1, (-1, cos.shape[-1]))
        left, right = heads.chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return (heads * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).flatten(-2)

    def run(self, hidden: Tensor, keep: Collection[str]) -> Trace:
        """A whole pass from what enters the first block, keeping the kinds asked for in every block.

        Kinds: those of sites (`resid.in`, `attn.q`, `attn.k`, `attn.v`, `attn.z`, `attn.out`, `resid.mid`, `mlp.out`,
        `resid.out`), and "query" and "key", the rotated ones.
        """
        kept: dict[str, list[Tensor]] = {kind: [] for kind in keep}
        for block in self.blocks:
            query, key, value = block.project(hidden)
            found = {"resid.in": hidden, "attn.q": query, "attn.k": key, "attn.v": value}
            found["query"], found["key"] = self.rotate(query), self.rotate(key)
            found["attn.z"] = block.attend(found["query"], found["key"], value, 0 if block.causal else None)
            found["attn.out"] = block.output(found["attn.z"])
            found["resid.mid"] = hidden + found["attn.out"]
            found["mlp.out"] = block.mlp(block.norm2(found["resid.mid"]))
            hidden = found["resid.mid"] + found["mlp.out"]
            found["resid.out"] = hidden
            for kind in kept:
                kept[kind].append(found[kind])
        return Trace(self.tail(hidden[:, self.read_at]), kept)

    def tail(self, hidden: Tensor) -> Tensor:
        """(n, classes) logits of the row that is read behind the last block, (n, width)."""
        hidden = hidden[:, None]
        for path in self.model.family.tail:
            hidden = self.model.module.get_submodule(path)(hidden)
        logits: Tensor = self.model.module.get_submodule(self.model.family.classifier)(hidden[:, 0])
        return logits
