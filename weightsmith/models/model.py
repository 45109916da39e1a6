"""`Model`: a network plus a table of named sites."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models.bound import BoundSite, linear_shape
from weightsmith.models.family import Family, Place
from weightsmith.models.preprocess import Preprocess
from weightsmith.models.text import Tokenize
from weightsmith.site import SUBJECT_TOKENS, Site

_NAMES_ONLY = (
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "label_names", "transformers_version",
)  # fmt: skip
"""Entries of a config that no forward pass depends on."""


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What torch keeps the hooks of a module in."""


class _Reached(Exception):  # noqa: N818  (no error: it ends a pass that has given what was wanted)
    """The first block was reached; what enters it is in `hidden`."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@dataclass(frozen=True, eq=False)
class Model:
    """A network, the family that names its sites, and how images or texts reach it.

    Attributes:
        module: the network; its forward takes `pixel_values` or `input_ids` and returns an object with `logits`.
        family: where its sites lie.
        encode: from uint8 images to `pixel_values`, or from text to token ids.
        class_names: one name a class; empty for a language model, whose classes are the tokens of its vocabulary.
        name: where it was loaded from, for people.
    """

    module: nn.Module
    family: Family
    encode: Preprocess | Tokenize
    class_names: tuple[str, ...]
    name: str = "model"

    @property
    def preprocess(self) -> Preprocess:
        """From uint8 images to `pixel_values`. Raises `WeightsmithError` for a language model."""
        if not isinstance(self.encode, Preprocess):
            raise WeightsmithError(
                f"{self.name} is a {self.family.title} and reads no images: give an image classifier"
            )
        return self.encode

    @property
    def tokenize(self) -> Tokenize:
        """From text to token ids. Raises `WeightsmithError` for an image classifier."""
        if not isinstance(self.encode, Tokenize):
            raise WeightsmithError(f"{self.name} is a {self.family.title} and reads no text: give a language model")
        return self.encode

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def n_classes(self) -> int:
        """Entries of the logits: classes of a classifier, tokens of a language model's vocabulary."""
        config: Any = self.module.config
        return len(self.class_names) or int(config.vocab_size)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(self.module.get_submodule(self.family.blocks).children())

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def n_heads(self, layer: int, kind: str = "attn.z") -> int:
        """Heads of a block at a kind of site; 0 where the family has no attention.

        With grouped-query attention there are fewer at `attn.k` and `attn.v` than at `attn.q` and `attn.z`; there are
        none in a block whose attention was removed.
        """
        if self.family.attention is None or not self.has(kind, layer):
            return 0
        return self._width(self._place(kind), layer) // self._head_width(layer)

    def has(self, kind: str, layer: int) -> bool:
        """Whether a block has a kind of site; only in a partial family may one lack what another has."""
        if not self.family.partial:
            return True
        try:
            self.module.get_submodule(self._place(kind).path(self._block(layer)))
        except AttributeError:
            return False
        return True

    def fingerprint(self) -> str:
        """SHA-256 of everything that a forward pass depends on: weights, config and preprocessing."""
        config: Any = getattr(self.module, "config", None)
        told = config.to_dict().items() if hasattr(config, "to_dict") else ()
        said = {key: value for key, value in told if key not in _NAMES_ONLY}
        text = json.dumps([weights_hash(self.module), said, self.encode.describe()], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def shared_key(self) -> str:
        """By which the processes of a job know the network (`weightsmith.ranks`).

        Raises:
            TypeError: it holds hooks, or a forward of its own, which no other process has.
        """
        for name, part in self.module.named_modules():
            if any(getattr(part, kind) for kind in _HOOKS) or "forward" in vars(part):
                raise TypeError(f"{name or 'the network'} has hooks")
        config: Any = getattr(self.module, "config", None)
        return f"{self.fingerprint()}:{getattr(config, '_attn_implementation', None)}:{self.module.training}"

    def sites(self) -> list[Site]:
        """Every site of the network, whole blocks and all tokens (heads are parts of theirs)."""
        found: list[Site] = []
        for kind in self.family.sites:
            if kind.startswith("classifier."):
                found.append(Site(kind))
            else:
                found.extend(Site(kind, layer) for layer in range(self.n_layers) if self.has(kind, layer))
        return found

    def lookup(self, kind: str, layer: int | None = None) -> Site:
        """The site where keys and values of a whole input are read: at CLS, or at the last token of a text."""
        place = self._place(kind)
        return Site(kind, layer, tokens=self.family.lookup if place.tokens else None)

    def bind(self, site: Site) -> BoundSite:
        """Find a site in this network.

        Raises:
            WeightsmithError: a site that the family has not, or a layer, head or token out of range.
        """
        place = self._place(site.kind)
        if site.span > 1:
            raise WeightsmithError(f"{site} is a window of {site.span} blocks, not one site: take each of its blocks")
        if site.layer is not None and site.layer >= self.n_layers:
            raise WeightsmithError(
                f"the site {site} asks for layer {site.layer}: {self.name} has layers 0 to {self.n_layers - 1}, "
                "name one of them"
            )
        if site.layer is not None:
            self._check_there(site.kind, site.layer)
        columns: slice | None = None
        if place.part is not None:
            width = self._width(place, site.layer or 0)
            columns = slice(place.part[0] * width, (place.part[0] + 1) * width)
        if site.head is not None:
            assert site.layer is not None
            heads = self.n_heads(site.layer, site.kind)
            if site.head >= heads:
                raise WeightsmithError(
                    f"the site {site} asks for head {site.head}: that layer has heads 0 to {heads - 1}, name "
                    "one of them"
                )
            width = self._head_width(site.layer)
            start = (columns.start if columns is not None else 0) + site.head * width
            columns = slice(start, start + width)
        path = place.path(self._block(site.layer) if site.layer is not None else "")
        return BoundSite(
            site=site,
            path=path,
            module=self.module.get_submodule(path),
            side=place.side,
            item=place.item,
            columns=columns,
            tokens=self._tokens(site),
            writable=place.patch,
        )

    def linear(self, kind: str, layer: int | None = None) -> tuple[str, bool, bool]:
        """(parameter name of W, whether it is stored transposed, whether there is a bias) for a value site's kind.

        Raises:
            WeightsmithError: no linear map ends at that kind of site.
        """
        if kind not in self.family.linear:
            raise WeightsmithError(f"no linear map ends at {kind!r}: {did_you_mean(kind, self.family.linear)}")
        entry = self.family.linear[kind]
        if not entry.module.startswith("/"):
            self._check_there(kind, layer or 0)
        path = entry.module[1:] if entry.module.startswith("/") else f"{self._block(layer or 0)}.{entry.module}"
        bias = getattr(self.module.get_submodule(path), "bias", None) is not None
        return f"{path}.weight", entry.transposed, bias

    def key_of(self, kind: str) -> str:
        """The kind of site where the keys of a linear map lie."""
        return self.family.linear[kind].key

    def check_layers(self, layers: tuple[int, ...], flag: str = "--edit-layers") -> None:
        """Raise `WeightsmithError` naming `flag` unless all layers are there, each once."""
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong or len(set(layers)) != len(layers) or not layers:
            what = f"layer {wrong[0]}" if wrong else "a layer twice" if layers else "no layer"
            raise WeightsmithError(
                f"{flag} names {what}: this model has layers 0 to {self.n_layers - 1}, give each at most once"
            )

    def logits(self, inputs: Tensor) -> Tensor:
        """(n, classes) logits of preprocessed images (n, channels, size, size), or of token ids (n, tokens) at the last."""
        logits: Tensor = self.module(inputs).logits
        return logits[:, -1] if self.family.pool == "last" else logits

    def token_logits(self, ids: Tensor) -> Tensor:
        """(n, tokens, vocabulary) logits behind every token of token ids (n, tokens), what comes next.

        Attention looks back only, so texts of different length may share a batch when the shorter are padded on the right.
        """
        logits: Tensor = self.module(ids).logits
        return logits

    def embed(self, inputs: Tensor) -> Tensor:
        """(n, tokens, width) what enters the first block; the pass ends there."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        # Before any hook of a user's, which `run_from` will run.
        handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            self.module(inputs)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise WeightsmithError(
            f"the forward pass never reached {self._block(0)}: the family table does not fit this model, "
            "correct its module paths"
        )

    def run_from(self, layer: int, hidden: Tensor) -> Tensor:
        """Logits when the forward pass starts at block `layer` with `hidden` as its input; n_layers runs the tail only.

        Args:
            hidden: (n, tokens, width), or (n, width) where there are no tokens.
        """
        logits = self.read_out(self.run_blocks(layer, hidden))
        return logits[:, -1] if self.family.pool == "last" else logits

    def run_blocks(self, layer: int, hidden: Tensor) -> Tensor:
        """What leaves the last block when the forward pass starts at block `layer` with `hidden` as its input."""
        place, contexts = self.family.sites["resid.out"], self.contexts(hidden)
        for block, context in zip(self.blocks[layer:], contexts[layer:], strict=True):
            given = block(hidden, **context)
            hidden = given if place.item is None or isinstance(given, Tensor) else given[place.item]
        return hidden

    def read_out(self, hidden: Tensor) -> Tensor:
        """Logits of what leaves the last block: of the pooled token, or in a language model of every token given."""
        for path in self.family.tail:
            hidden = self.module.get_submodule(path)(hidden)
        if self.family.pool == "cls":
            hidden = hidden[:, self.family.cls]
        logits: Tensor = self.module.get_submodule(self.family.classifier)(hidden)
        return logits

    def contexts(self, hidden: Tensor) -> list[dict[str, Any]]:
        """What each block takes beside its input: in a language model its causal mask and the positions."""
        if not self.family.causal:
            return [{}] * self.n_layers
        from transformers.masking_utils import create_masks_for_generate

        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        config: Any = self.module.config
        masks = create_masks_for_generate(config, hidden, None, None, position_ids=positions)  # no padding, no cache
        every: dict[str, Any] = {"position_ids": positions}
        rotary = self._rotary()
        if rotary is not None:
            every["position_embeddings"] = rotary(hidden, position_ids=positions)
        if isinstance(masks, dict):  # by kind of block, where some see a window only
            return [every | {"attention_mask": masks[kind]} for kind in config.layer_types[: self.n_layers]]
        return [every | {"attention_mask": masks}] * self.n_layers

    def _rotary(self) -> nn.Module | None:
        """What turns queries and keys where blocks are handed its turns; in older versions of GPT-J attention does."""
        path = self.family.rotary
        return None if path is None else dict(self.module.named_modules()).get(path)

    def window(self, layer: int) -> int | None:
        """Tokens that a token of the block looks back to, itself included; None where it sees all before it."""
        config: Any = self.module.config
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] == "full_attention":
            return None
        window = getattr(config, "sliding_window", None)
        return None if window is None else int(window)

    def _check_there(self, kind: str, layer: int) -> None:
        if not self.has(kind, layer):
            there = [other for other in range(self.n_layers) if self.has(kind, other)]
            raise WeightsmithError(
                f"block {layer} of {self.name} has no {kind}: that part of it was removed, name one of the blocks {there}"
            )

    def _block(self, layer: int) -> str:
        return f"{self.family.blocks}.{layer}"

    def width(self, site: Site) -> int | None:
        """Entries of a site at one token; None where its module is no linear map, so that only a pass tells."""
        try:
            return self._width(self._place(site.kind), site.layer or 0)
        except AttributeError:
            return None

    def _width(self, place: Place, layer: int) -> int:
        """Entries of a kind of site at one token, in a module that is a linear map."""
        module = self.module.get_submodule(place.path(self._block(layer)))
        inputs, outputs = linear_shape(module)
        width = inputs if place.side == "in" else outputs
        return width // (place.part[1] if place.part is not None else 1)

    def _head_width(self, layer: int) -> int:
        assert self.family.attention is not None
        assert self.family.head_width is not None
        attention = self.module.get_submodule(f"{self._block(layer)}.{self.family.attention}")
        return int(getattr(attention, self.family.head_width))

    def _place(self, kind: str) -> Place:
        if kind not in self.family.sites:
            raise WeightsmithError(
                f"a {self.family.title} has no site {kind!r}: {did_you_mean(kind, self.family.sites)}"
            )
        return self.family.sites[kind]

    def _tokens(self, site: Site) -> Tensor | None:
        place = self.family.sites[site.kind]
        if site.tokens is None:
            return None
        if not (self.family.has_tokens and place.tokens):
            raise WeightsmithError(f"the site {site} names tokens where there are none: write {site.at(None)}")
        if site.tokens in SUBJECT_TOKENS:
            raise WeightsmithError(
                f"the site {site} names tokens of a subject: only a sweep over prompts knows where they are, "
                "name positions here"
            )
        if site.tokens in ("cls", "patches") and self.family.cls is None:
            raise WeightsmithError(
                f"the site {site} asks for {site.tokens}, and a {self.family.title} has no CLS token: name positions, or last"
            )
        if site.tokens == "cls":
            return torch.tensor([self.family.cls])
        if site.tokens == "last":
            return torch.tensor([-1])
        count = self.n_tokens
        if site.tokens == "patches":
            return torch.arange(self.family.special, count)
        assert isinstance(site.tokens, tuple)
        if site.tokens[-1] >= count:
            raise WeightsmithError(
                f"the site {site} asks for token {site.tokens[-1]}: there are 0 to {count - 1}, name one of them"
            )
        return torch.tensor(site.tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens of an image, special ones included; of a text the most that fit; 0 where there are none."""
        if not self.family.has_tokens:
            return 0
        config: Any = self.module.config
        if self.family.reads == "text":
            return int(config.max_position_embeddings)
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        return self.family.special + (self.preprocess.size // int(patch)) ** 2
