"""Corrections of a language model: read at the subject's last token, in the prompt alone and behind prefixes.

Attention looks back only. So texts share a batch when the shorter are padded on the right, a key needs no more of a
text than up to its lookup token, and an answer's logits are read where it is predicted and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.edit.contexts import Passage, Reading
from weightsmith.edit.corrections import Goal, Measured
from weightsmith.edit.targets import TargetOptions, TargetValues, descend, logits_to_reach, margins
from weightsmith.models import Model, patch, record
from weightsmith.site import Site

_BYTES = 2**30
"""What a batch's activations may take while values are descended, by a rough count."""


@dataclass(frozen=True, eq=False)
class TextCorrections:
    """Prompts about subjects and the answers that they should get.

    Attributes:
        requests: as tokens.
        asked: E readings that a solve meets: the requests themselves where they are read at the subject, or one for each
            token of an answer where they are read where it is predicted.
        half_bare: the prompt alone weighs as much as all prefixed ones together (MEMIT); else all weigh the same (ROME).
        bare_values: present values are those of the prompt alone, as the papers have them; else averaged as the keys
            are, so that what is added to the averaged key's value is exactly δ.
    """

    requests: Sequence[Reading]
    asked: Sequence[Reading]
    half_bare: bool = True
    bare_values: bool = False

    def __len__(self) -> int:
        return len(self.requests)

    def part(self, first: int, end: int) -> TextCorrections:
        """The requests from `first` up to `end`."""
        names = {reading.name for reading in self.requests[first:end]}
        asked = [reading for reading in self.asked if reading.name in names]
        return replace(self, requests=self.requests[first:end], asked=asked)

    @torch.no_grad()
    def leads(self, model: Model) -> Tensor:
        return torch.tensor([answer["margin"] for answer in self.answers(model)])

    @torch.no_grad()
    def measure(self, model: Model, kind: str, layer: int | None, goal: Goal) -> Measured:
        if layer is None:
            return self._measured_at_head(model)
        found = self._at_lookup(model, Site(model.key_of(kind), layer), Site(goal.kind, goal.layer))
        keys, values = (self._by_request(each) for each in found)
        present = [each[0] if self.bare_values else self._average(each) for each in values]
        return Measured(
            torch.stack([self._average(each) for each in keys]),
            torch.stack([each[0] for each in keys]),
            torch.stack(present),
        )

    @torch.no_grad()
    def in_contexts(self, model: Model, key: Site, value: Site) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self._at_lookup(model, key, value)
        wanted = [reading.target[0] for reading in self.asked for _ in reading.rewrites]
        return keys, values, torch.tensor(wanted)

    def _at_lookup(self, model: Model, key: Site, value: Site) -> tuple[Tensor, Tensor]:
        """(n, d) keys and (n, width) values, a row a context of each that is asked."""
        found: dict[Site, list[Tensor]] = {key: [], value: []}
        passages = [
            Passage(passage.ids[: passage.lookup + 1], passage.lookup)
            for reading in self.asked
            for passage in reading.rewrites
        ]

        def read(batch: _Batch) -> None:
            seen = record(model, batch.ids.to(model.device), list(found))
            for site, values in [(site, batch.at_lookup(seen[site]).float().cpu()) for site in found]:
                found[site].append(values)

        _each(read, passages, model, self._fitting("prompts to correct are read"))
        return torch.cat(found[key]), torch.cat(found[value])

    def columns(self, layer: int | None) -> list[str]:
        if layer is None:
            return [reading.name for reading in self.requests for _ in reading.target]
        return [reading.name for reading in self.asked]

    def wanted(self, model: Model, goal: Goal, options: TargetOptions) -> TargetValues:
        if goal.layer is None:
            logits, targets = self._measured_at_head(model).present, self._answer_tokens()
            return TargetValues(
                logits_to_reach(logits, targets, options.margin), torch.ones(len(targets), dtype=torch.bool)
            )
        budget = _tokens_per_batch(model, goal.layer)
        chunks: list[list[Reading]] = [[]]
        for reading in self.asked:
            if chunks[-1] and _tokens([*chunks[-1], reading]) > budget:
                chunks.append([])
            chunks[-1].append(reading)
        fitting = self._fitting("values are descended")
        # No request's value depends on another's, so fewer at a time come to the same.
        parts = fitting.each(lambda own: self._wanted_of(model, goal, options, own), ((chunk,) for chunk in chunks))
        return TargetValues.joined(parts)

    def _wanted_of(self, model: Model, goal: Goal, options: TargetOptions, chunk: Sequence[Reading]) -> TargetValues:
        assert goal.layer is not None
        layer = goal.layer
        passages = [passage for reading in chunk for passage in reading.rewrites]
        counts = [len(reading.rewrites) for reading in chunk]
        owner = torch.arange(len(chunk)).repeat_interleave(torch.tensor(counts)).to(model.device)
        batch = _padded([*passages, *(reading.neutral for reading in chunk)], model.device)
        owners = torch.cat([owner, torch.arange(len(chunk), device=model.device)])
        start = Site("resid.out" if goal.kind == "resid.out" else "resid.in", goal.layer)
        value = Site(goal.kind, goal.layer)
        with torch.no_grad():
            seen = record(model, batch.ids, [start, value])
            hidden = seen[start]
            present = torch.split(batch.at_lookup(seen[value])[: len(passages)], counts)
            init = torch.stack([each[0] if self.bare_values else self._average(each) for each in present])
        rows, places = batch.answers()
        tokens = torch.tensor(
            [t for reading in chunk for _ in reading.rewrites for t in reading.target], device=model.device
        )

        def run(delta: Tensor, which: Tensor) -> tuple[_Part, Tensor, Tensor]:
            """Logits where the answers are predicted (answer tokens, vocabulary), and behind the neutral prompts."""
            part = _Part.of(which, len(chunk), owners, rows, len(passages))

            def moved(activation: Tensor) -> Tensor:
                added = activation.clone()
                where = torch.arange(len(added), device=added.device), batch.lookup[part.kept]
                added[where] = added[where] + delta[part.owners].to(added.dtype)
                return added

            if goal.kind == "resid.out":
                leaving = model.run_blocks(layer + 1, moved(hidden[part.kept]))
            else:
                with patch(model, {value: moved}):
                    leaving = model.run_blocks(layer, hidden[part.kept])
            at_lookup = leaving[torch.arange(len(leaving), device=leaving.device), batch.lookup[part.kept]]
            answers = model.read_out(leaving[part.rows, places[part.asked]]).float()
            return part, answers, model.read_out(at_lookup[part.neutral]).float()

        with torch.no_grad():
            everyone = torch.arange(len(chunk), device=model.device)
            before = run(torch.zeros_like(init), everyone)[2].log_softmax(-1)

        def evaluate(delta: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            part, logits, behind = run(delta, which)
            wanted = tokens[part.asked]
            nll = F.cross_entropy(logits, wanted, reduction="none")
            owner = part.owners[: len(part.kept) - len(which)]
            loss = _mean_by(_mean_by(nll, part.rows, len(owner)), owner, len(which))
            if options.kl_factor:
                now = behind.log_softmax(-1)
                loss = loss + options.kl_factor * (now.exp() * (now - before[which])).sum(-1)
            lead = torch.full((len(which),), float("inf"), device=logits.device)
            return loss, lead.scatter_reduce(0, owner[part.rows], margins(logits.detach(), wanted), "amin")

        found = descend(init, evaluate, options)
        return TargetValues(found.values.cpu(), found.reached.cpu())

    def at_head(self, model: Model) -> tuple[Tensor, Tensor]:
        features = self._measured_at_head(model).keys
        return features.to(model.device), self._answer_tokens().to(model.device)

    def loss(self, model: Model, which: Tensor) -> Tensor:
        chosen = [self.requests[i] for i in which.tolist()]
        batch = _padded([passage for reading in chosen for passage in reading.rewrites], model.device)
        tokens = torch.tensor([t for reading in chosen for _ in reading.rewrites for t in reading.target])
        rows, places = batch.answers()
        logits = model.token_logits(batch.ids)[rows, places].float()
        nll = F.cross_entropy(logits, tokens.to(logits.device), reduction="none")
        owner = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(r.rewrites) for r in chosen]))
        return _mean_by(_mean_by(nll, rows, len(batch.ids)), owner.to(nll.device), len(chosen))

    @torch.no_grad()
    def answers(self, model: Model) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        bare = [reading.rewrites[0] for reading in self.requests]

        def ask(batch: _Batch) -> None:
            rows, places = batch.answers()
            logits = model.token_logits(batch.ids.to(model.device))[rows.to(model.device), places.to(model.device)]
            chunk = self.requests[len(found) : len(found) + len(batch.ids)]
            by_request = torch.split(logits.float().cpu(), [passage.answer for passage in batch.passages])
            for reading, of_answer in zip(chunk, by_request, strict=True):
                lead = float(margins(of_answer, torch.tensor(reading.target)).min())
                words = "".join(model.tokenize.words(tuple(of_answer.argmax(1).tolist()))).strip()
                found.append({"answer": words, "margin": lead, "success": lead > 0})

        _each(ask, bare, model, self._fitting("prompts to correct are asked"))
        return found

    def rows(self) -> list[dict[str, Any]]:
        return [{"sample": reading.name, "target": reading.words} for reading in self.requests]

    def _answer_tokens(self) -> Tensor:
        return torch.tensor([token for reading in self.requests for token in reading.target])

    @torch.no_grad()
    def _measured_at_head(self, model: Model) -> Measured:
        """A key for each token of each answer: the features that predict it, in the prompt alone."""
        sites = [model.lookup("classifier.key").at(None), model.lookup("classifier.value").at(None)]
        keys, logits = [], []

        def read(batch: _Batch) -> None:
            seen = record(model, batch.ids.to(model.device), sites)
            rows, places = batch.answers()
            both = [seen[site][rows, places].float().cpu() for site in sites]
            keys.append(both[0])
            logits.append(both[1])

        bare = [reading.rewrites[0] for reading in self.requests]
        _each(read, bare, model, self._fitting("answers to correct are read"))
        return Measured(torch.cat(keys), torch.cat(keys), torch.cat(logits))

    def _fitting(self, what: str) -> Fitting:
        """How many at a time memory holds, which is found once for all passes over these requests."""
        return self._fits.setdefault(what, Fitting(what))

    @cached_property
    def _fits(self) -> dict[str, Fitting]:
        return {}

    def _by_request(self, values: Tensor) -> list[Tensor]:
        return list(torch.split(values, [len(reading.rewrites) for reading in self.asked]))

    def _average(self, contexts: Tensor) -> Tensor:
        if self.half_bare and len(contexts) > 1:
            return (contexts[0] + contexts[1:].mean(0)) / 2
        return contexts.mean(0)


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of a batch that belong to some of its requests.

    Attributes:
        kept: which rows, those of prompts first and then the neutral ones; owners: for each the place of its request.
        asked: which of the answers' tokens; rows: for each its row among the kept ones.
        neutral: the neutral rows among the kept ones.
    """

    kept: Tensor
    owners: Tensor
    asked: Tensor
    rows: Tensor
    neutral: Tensor

    @classmethod
    def of(cls, which: Tensor, requests: int, owners: Tensor, rows: Tensor, passages: int) -> _Part:
        place = torch.full((requests,), -1, device=which.device)
        place[which] = torch.arange(len(which), device=which.device)
        inside = place[owners] >= 0
        kept = torch.nonzero(inside).flatten()
        among = inside.cumsum(0) - 1  # a row's place among the kept ones
        asked = torch.nonzero(inside[rows]).flatten()
        neutral = torch.nonzero(kept >= passages).flatten()
        return cls(kept, place[owners[kept]], asked, among[rows[asked]], neutral)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Passages padded on the right: ids (n, tokens), lookup (n,)."""

    passages: Sequence[Passage]
    ids: Tensor
    lookup: Tensor

    def at_lookup(self, activation: Tensor) -> Tensor:
        """(n, width) of an activation (n, tokens, width)."""
        lookup = self.lookup.to(activation.device)
        return activation[torch.arange(len(lookup), device=activation.device), lookup]

    def answers(self) -> tuple[Tensor, Tensor]:
        """Rows and positions at which the tokens of the answers are predicted, one entry a token."""
        where = [
            (row, len(passage.ids) - passage.answer + k)
            for row, passage in enumerate(self.passages)
            for k in range(passage.answer)
        ]
        rows, places = torch.tensor(where, device=self.ids.device).reshape(-1, 2).unbind(1)
        return rows, places


def _padded(passages: Sequence[Passage], device: torch.device | str = "cpu") -> _Batch:
    longest = max(len(passage.ids) for passage in passages)
    ids = torch.tensor([[*passage.ids, *[0] * (longest - len(passage.ids))] for passage in passages], device=device)
    return _Batch(passages, ids, torch.tensor([passage.lookup for passage in passages], device=device))


def _each(work: Callable[[_Batch], None], passages: Sequence[Passage], model: Model, fitting: Fitting) -> None:
    """`work` of all passages in their order, as many at a time as `_tokens_per_batch` says and memory holds."""
    chunks = ((chunk,) for chunk in _chunks(passages, _tokens_per_batch(model)))
    for _ in fitting.each(lambda own: work(_padded(own)), chunks):
        pass


def _chunks(passages: Sequence[Passage], tokens: int) -> Iterator[list[Passage]]:
    """Passages in their order, as many at a time as hold so many tokens."""
    chunk: list[Passage] = []
    for passage in passages:
        longest = max(len(other.ids) for other in [*chunk, passage])
        if chunk and longest * (len(chunk) + 1) > tokens:
            yield chunk
            chunk = []
        chunk.append(passage)
    if chunk:
        yield chunk


def _tokens(chunk: Sequence[Reading]) -> int:
    passages = [passage for reading in chunk for passage in (*reading.rewrites, reading.neutral)]
    return max(len(passage.ids) for passage in passages) * len(passages)


def _tokens_per_batch(model: Model, layer: int = 0) -> int:
    """How many tokens a batch may hold. A block keeps about forty numbers a token and unit of width for its gradient."""
    config: Any = model.module.config
    return max(256, int(_BYTES // (4 * 40 * config.hidden_size * max(1, model.n_layers - layer))))


def _mean_by(values: Tensor, group: Tensor, count: int) -> Tensor:
    """(count,) mean of the values of each group."""
    total = torch.zeros(count, device=values.device).index_add(0, group, values)
    sizes = torch.zeros(count, device=values.device).index_add(0, group, torch.ones_like(values))
    return total / sizes
