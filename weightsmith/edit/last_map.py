"""The last MLP's value map, and what it needs of a text or an image: its key, and all that is added to its value.

Behind it nothing mixes tokens any more: logits = read_out(rest + W k). Neither the key k nor the rest depends on W, so
both are read once, and another W costs a read-out a row instead of a pass through the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import Knowledge
from weightsmith.edit.corrections import Corrections
from weightsmith.edit.preserved import Preserved, right_ones, texts_of
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.models.hooks import record_until
from weightsmith.progress import progress
from weightsmith.site import Site

_VALUE = "mlp.value"

_BYTES = 2**29
"""What the rows of one preserved population may take."""

_CONTINUED = 3
"""Tokens of what the unedited model says behind a prompt that are held: most answers are no longer."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What enters the map and what bypasses it: keys (n, d), rest (n, width)."""

    keys: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, which: Tensor | slice) -> Rows:
        return Rows(self.keys[which], self.rest[which])


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows and the token or class (n,) that each should give."""

    rows: Rows
    wanted: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor) -> Asked:
        return Asked(self.rows[which], self.wanted[which])

    @staticmethod
    def joined(parts: Sequence[Asked]) -> Asked:
        """All rows, in order."""
        rows = Rows(torch.cat([part.rows.keys for part in parts]), torch.cat([part.rows.rest for part in parts]))
        return Asked(rows, torch.cat([part.wanted for part in parts]))


@dataclass(frozen=True, eq=False)
class Pool:
    """Preserved rows.

    Attributes:
        prompts: of each row the prompt that it belongs to; none for running text and images.
        answers: of each row the first token with which the unedited model answers that prompt.
    """

    rows: Rows
    prompts: tuple[str, ...] = ()
    answers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class LastMap:
    """The value map of a model's last MLP; `name` and `transposed` are its parameter's."""

    model: Model
    name: str
    transposed: bool

    @classmethod
    def of(cls, model: Model) -> LastMap:
        """The map of a model.

        Raises:
            WeightsmithError: a network whose answer is not read at one token of a residual stream.
        """
        family = model.family
        if not family.spreads or (family.reads == "images" and family.cls is None):
            raise WeightsmithError(
                f"{model.name} is a {family.title}, and this editor needs a residual stream that MLPs add to as it is, read "
                "at one token: take alphaedit or memit"
            )
        name, transposed, _ = model.linear(_VALUE, model.n_layers - 1)
        return cls(model, name, transposed)

    @property
    def sites(self) -> list[Site]:
        """Key, and what leaves the block."""
        return [Site(kind, self.model.n_layers - 1) for kind in (self.model.key_of(_VALUE), "resid.out")]

    def weight(self) -> Tensor:
        """(width, d) a copy of W as it is, float32."""
        w = self.model.module.get_parameter(self.name).detach().float()
        return (w.mT if self.transposed else w).clone()

    def logits(self, w: Tensor, rows: Rows) -> Tensor:
        """(n, classes or vocabulary) with W = w (width, d), with gradients."""
        hidden = rows.rest + rows.keys @ w.mT
        if self.model.family.reads == "images":
            hidden = hidden[:, None]  # CLS alone
        return self.model.read_out(hidden.to(self.model.module.get_parameter(self.name).dtype)).float()

    @torch.no_grad()
    def asked(self, corrections: Corrections) -> Asked:
        """A row for each token of each answer in each context, or for each view of each image."""
        keys, leaving, wanted = corrections.in_contexts(self.model, *self.sites)
        return Asked(self._rows(keys, leaving), wanted.to(self.model.device))

    @torch.no_grad()
    def preserved(self, preserve: Preserved, count: int, seed: int) -> list[Pool]:
        """At most `count` rows of each population: images, or the tokens of running text and the ends of prompts.

        Raises:
            WeightsmithError: images for a language model or texts for a classifier, or no image that the model gets right.
            HeldOutError: `preserve` is sealed.
        """
        model, random = self.model, np.random.default_rng(seed)
        if isinstance(preserve, ImageSet) != (model.family.reads == "images"):
            wanted = "texts" if model.family.reads == "text" else "images"
            raise WeightsmithError(f"{model.name} reads {wanted}: give {wanted} to preserve")
        width, d = self.weight().shape
        count = max(1, min(count, _BYTES // (4 * (d + width))))
        if isinstance(preserve, ImageSet):
            right = right_ones(model, preserve)
            chosen = right.subset(np.sort(random.permutation(len(right))[:count]))
            at_cls = [model.lookup(site.kind, site.layer) for site in self.sites]
            pixels = (pixels for pixels, _ in chosen.batches(256))
            return [Pool(self._read(pixels, lambda some: model.preprocess(some, model.device), at_cls))]
        texts = texts_of(preserve)
        assert not isinstance(texts, ImageSet)
        windows = np.sort(random.permutation(len(texts))[: max(1, count // texts.length)])
        pools = [Pool(self._read(texts.subset(windows).batches(16), lambda ids: ids.to(model.device), self.sites))]
        if isinstance(preserve, Knowledge) and preserve.prompts:
            some = random.permutation(len(preserve.prompts))[: max(1, count // _CONTINUED)]
            pools.append(self._behind([preserve.prompts[i] for i in np.sort(some)]))
        return pools

    def _behind(self, prompts: Sequence[str]) -> Pool:
        """Rows at the last token of each prompt and behind what the model goes on with, `_CONTINUED` tokens in all."""
        by_length: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        for prompt in prompts:
            tokens = self.model.tokenize(prompt)
            by_length.setdefault(len(tokens), []).append((tokens, prompt))
        alike = [each[i : i + 256] for _, each in sorted(by_length.items()) for i in range(0, len(each), 256)]
        sites = [site.at("last") for site in self.sites]

        def read(batch: list[tuple[tuple[int, ...], str]]) -> tuple[list[list[Tensor]], list[str], list[int]]:
            """Values at both sites, the prompt of each row, and the first token with which the model goes on."""
            length = len(batch[0][0])
            ids = torch.tensor([tokens for tokens, _ in batch], device=self.model.device)
            steps = min(_CONTINUED, self.model.n_tokens - length + 1)
            values: list[list[Tensor]] = [[] for _ in sites]
            for _ in range(steps):
                seen = record(self.model, ids, sites)
                ids = torch.cat([ids, seen.logits.argmax(-1, keepdim=True)], 1)
                for of_site, site in zip(values, sites, strict=True):
                    of_site.append(seen[site].flatten(0, -2))
            advance(len(batch))
            return values, [prompt for _, prompt in batch] * steps, ids[:, length].tolist() * steps

        with progress("preserved prompts", len(prompts)) as advance:
            found = list(Fitting("preserved prompts are read").each(read, ((batch,) for batch in alike)))
        keys, leaving = (torch.cat([one for values, _, _ in found for one in values[place]]) for place in range(2))
        named = tuple(prompt for _, prompts_of, _ in found for prompt in prompts_of)
        answers = tuple(token for _, _, tokens in found for token in tokens)
        return Pool(self._rows(keys, leaving), named, answers)

    def _read(self, batches: Iterable[Tensor], encode: Callable[[Tensor], Tensor], sites: Sequence[Site]) -> Rows:
        """The rows of samples, `encode`d for the model, at the sites of key and of what leaves the block."""

        def read(batch: Tensor) -> list[Tensor]:
            seen = record_until(self.model, encode(batch), sites)
            advance(len(batch))
            return [seen[site].flatten(0, -2) for site in sites]

        with progress("preserved samples", None) as advance:
            found = list(Fitting("preserved samples are read").each(read, ((batch,) for batch in batches)))
        return self._rows(*(torch.cat(values) for values in zip(*found, strict=True)))

    def _rows(self, keys: Tensor, leaving: Tensor) -> Rows:
        """Rows of keys (n, d) and of what leaves the block (n, width); a bias belongs to the rest."""
        k, out = keys.to(self.model.device).float(), leaving.to(self.model.device).float()
        return Rows(k, out - k @ self.weight().mT)
