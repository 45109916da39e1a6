"""`Model`: a network plus a table of named sites."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models.family import Family, Place
from weightsmith.models.preprocess import Preprocess
from weightsmith.site import Site

_NAMES_ONLY = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")
"""Entries of a config that no forward pass depends on."""


@dataclass(frozen=True)
class BoundSite:
    """A site of one network: the module to hook, and how to read and write the site in its activation."""

    site: Site
    path: str
    module: nn.Module
    side: str
    item: int | None
    columns: slice | None
    tokens: Tensor | None
    writable: bool

    def read(self, activation: Tensor) -> Tensor:
        """The site in the module's activation: (batch, tokens, width), or (batch, width) where there are no tokens."""
        if self.tokens is not None:
            activation = activation.index_select(1, self.tokens.to(activation.device))
        return activation if self.columns is None else activation[..., self.columns]

    def write(self, activation: Tensor, value: Tensor) -> Tensor:
        """The activation with the site replaced by `value` (shape as `read` gives it, or broadcast to it)."""
        columns = slice(None) if self.columns is None else self.columns
        value = value.to(activation.device, activation.dtype)
        if self.tokens is None and self.columns is None:
            return value.expand_as(activation)
        written = activation.clone()
        if self.tokens is None:
            written[..., columns] = value
        else:
            written[:, self.tokens.to(activation.device), columns] = value
        return written


@dataclass(frozen=True, eq=False)
class Model:
    """A network, the family that names its sites, and how images reach it.

    Attributes:
        module: the network; its forward takes `pixel_values` and returns an object with `logits`.
        family: where its sites lie.
        preprocess: from uint8 images to `pixel_values`.
        class_names: one name a class.
        name: where it was loaded from, for people.
    """

    module: nn.Module
    family: Family
    preprocess: Preprocess
    class_names: tuple[str, ...]
    name: str = "model"

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(self.module.get_submodule(self.family.blocks).children())

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def n_heads(self, layer: int) -> int:
        """Attention heads of a block; 0 where the family has no attention."""
        if self.family.attention is None:
            return 0
        out = self.module.get_submodule(self.family.sites["attn.z"].path(self._block(layer)))
        assert isinstance(out, nn.Linear)
        return out.in_features // self._head_width(layer)

    def fingerprint(self) -> str:
        """SHA-256 of everything that a forward pass depends on: weights, config and preprocessing."""
        config: Any = getattr(self.module, "config", None)
        entries = config.to_dict() if hasattr(config, "to_dict") else {}
        said = {key: value for key, value in entries.items() if key not in _NAMES_ONLY}
        text = json.dumps([weights_hash(self.module), said, asdict(self.preprocess)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def sites(self) -> list[Site]:
        """Every site of the network, whole blocks and all tokens (heads are parts of theirs)."""
        found: list[Site] = []
        for kind in self.family.sites:
            if kind.startswith("classifier."):
                found.append(Site(kind))
            else:
                found.extend(Site(kind, layer) for layer in range(self.n_layers))
        return found

    def lookup(self, kind: str, layer: int | None = None) -> Site:
        """The site where keys and values of a whole image are read: at CLS where there are tokens."""
        place = self._place(kind)
        return Site(kind, layer, tokens="cls" if self.family.has_tokens and place.tokens else None)

    def bind(self, site: Site) -> BoundSite:
        """Find a site in this network.

        Raises:
            WeightsmithError: a site that the family has not, or a layer, head or token out of range.
        """
        place = self._place(site.kind)
        if site.layer is not None and site.layer >= self.n_layers:
            raise WeightsmithError(
                f"the site {site} asks for layer {site.layer}: {self.name} has layers 0 to {self.n_layers - 1}"
            )
        columns: slice | None = None
        if site.head is not None:
            assert site.layer is not None
            if site.head >= self.n_heads(site.layer):
                raise WeightsmithError(
                    f"the site {site} asks for head {site.head}: that layer has heads 0 to "
                    f"{self.n_heads(site.layer) - 1}"
                )
            width = self._head_width(site.layer)
            columns = slice(site.head * width, (site.head + 1) * width)
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

    def logits(self, pixel_values: Tensor) -> Tensor:
        """(n, classes) logits of preprocessed images (n, channels, size, size)."""
        logits: Tensor = self.module(pixel_values).logits
        return logits

    def run_from(self, layer: int, hidden: Tensor) -> Tensor:
        """Logits when the forward pass starts at block `layer` with `hidden` as its input; n_layers runs the tail only.

        Args:
            hidden: (n, tokens, width), or (n, width) where there are no tokens.
        """
        for block in self.blocks[layer:]:
            hidden = block(hidden)
        for path in self.family.tail:
            hidden = self.module.get_submodule(path)(hidden)
        if self.family.pool == "cls":
            hidden = hidden[:, self.family.cls]
        logits: Tensor = self.module.get_submodule(self.family.classifier)(hidden)
        return logits

    def _block(self, layer: int) -> str:
        return f"{self.family.blocks}.{layer}"

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
        count = self.n_tokens
        if site.tokens == "cls":
            return torch.tensor([self.family.cls])
        if site.tokens == "patches":
            return torch.arange(self.family.special, count)
        if site.tokens == "last":
            return torch.tensor([count - 1])
        assert isinstance(site.tokens, tuple)
        if site.tokens[-1] >= count:
            raise WeightsmithError(f"the site {site} asks for token {site.tokens[-1]}: there are 0 to {count - 1}")
        return torch.tensor(site.tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens of an image, special ones included; 0 where there are none."""
        if not self.family.has_tokens:
            return 0
        config: Any = self.module.config
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        return self.family.special + (self.preprocess.size // int(patch)) ** 2
