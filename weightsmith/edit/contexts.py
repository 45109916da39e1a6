"""What editors of language models read: a request's prompt as tokens, alone and behind generated sentences.

Prefixes are to a prompt what views are to an image: keys and values averaged over them belong to the subject rather
than to one wording.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import default_cache_dir
from weightsmith.measure.kept import keep_json, kept_json
from weightsmith.models import Model
from weightsmith.request import TextRequest

LOOKUPS = ("subject_last", "last")
"""Tokens at which a prompt may be read: the papers' `fact_token`."""

_STARTS = ("The", "Therefore", "Because", "I", "You")
"""First words of generated prefixes, as in the code of MEMIT (Meng et al., 2023)."""


@dataclass(frozen=True)
class Passage:
    """A text as tokens.

    Attributes:
        ids: its tokens.
        lookup: position of the subject's last token.
        answer: how many of the last positions predict the answer's tokens; 0 where nothing is asked.
    """

    ids: tuple[int, ...]
    lookup: int
    answer: int = 0


@dataclass(frozen=True)
class Reading:
    """A request as the tokens that an editor reads.

    Attributes:
        name: of the request.
        target: the wanted answer's tokens.
        rewrites: the prompt, alone first and then behind each prefix, with all of the answer but its last token.
        neutral: "<subject> is a", whose continuation should stay.
        words: the wanted answer as people read it.
    """

    name: str
    target: tuple[int, ...]
    rewrites: tuple[Passage, ...]
    neutral: Passage
    words: str = ""


def readings(
    model: Model, requests: Sequence[TextRequest], prefixes: Sequence[str], lookup: str = "subject_last"
) -> list[Reading]:
    """Requests as tokens: alone, and behind each prefix.

    Args:
        lookup: "subject_last", or "last" for the last token of the prompt, behind which the answer is read.

    Raises:
        WeightsmithError: a subject that is not in its prompt, an empty target, a text that is longer than the model
            reads, or a model without a tokenizer.
    """
    if lookup not in LOOKUPS:
        raise WeightsmithError(f"there is no lookup token {lookup!r}: {did_you_mean(lookup, LOOKUPS)}")
    return [_reading(model, request, prefixes, lookup == "last") for request in requests]


def by_answer_token(readings: Sequence[Reading]) -> list[Reading]:
    """A reading for each token of each answer, of which it is the only one, looked up where it is predicted."""
    found = []
    for reading in readings:
        for k, token in enumerate(reading.target):
            rewrites = []
            for passage in reading.rewrites:
                end = len(passage.ids) - passage.answer + k + 1
                rewrites.append(Passage(passage.ids[:end], end - 1, 1))
            found.append(Reading(reading.name, (token,), tuple(rewrites), reading.neutral, reading.words))
    return found


def _reading(model: Model, request: TextRequest, prefixes: Sequence[str], last: bool) -> Reading:
    tokenize = model.tokenize
    longest = getattr(model.module.config, "max_position_embeddings", None)
    passages: list[Passage] = []
    target: tuple[int, ...] = ()
    for prefix in ("", *prefixes):
        text = f"{prefix} {request.prompt}" if prefix else request.prompt
        ids, count = tokenize.continued(text, request.target)
        lookup = tokenize.subject(text, request.subject)[1] - 1
        if not prefix:
            target = ids[-count:]
        if ids[-count:] != target or lookup >= len(ids) - count:
            continue  # the prefix changed how the answer is tokenized: that context would ask for something else
        if longest is not None and len(ids) > longest:
            if prefix:
                continue
            raise WeightsmithError(
                f"request {request.name} has {len(ids)} tokens with its answer and {model.name} reads {longest}: "
                "shorten the prompt"
            )
        passages.append(Passage(ids[:-1], len(ids) - count - 1 if last else lookup, count))
    if not passages:
        raise WeightsmithError(
            f"the subject {request.subject!r} of request {request.name} shares a token with the answer "
            f"{request.target!r}: put words between them"
        )
    neutral = f"{request.subject} is a"
    return Reading(
        request.name,
        target,
        tuple(passages),
        Passage(tokenize(neutral), tokenize.subject(neutral, request.subject)[1] - 1),
        request.target,
    )


def generated_prefixes(
    model: Model, lengths: Sequence[tuple[int, int]], seed: int, cache_dir: Path | None = None
) -> tuple[str, ...]:
    """Short texts that the model writes itself, each ending a sentence, the same for the same model and seed.

    They are kept by model and tokenizer, so that a second editing of the same weights reads the same.

    Args:
        lengths: (tokens, how many) pairs; MEMIT takes ((10, 5),), ROME ((5, 10), (10, 10)).
    """
    if any(tokens < 1 or count < 0 for tokens, count in lengths):
        raise WeightsmithError("prefix lengths are pairs of at least one token and a count from 0: give (10, 5) say")
    if not sum(count for _, count in lengths):
        return ()
    said = json.dumps([model.fingerprint(), [list(pair) for pair in lengths], seed, _STARTS])
    path = (cache_dir or default_cache_dir()) / "prefixes" / f"{hashlib.sha256(said.encode()).hexdigest()}.json"
    kept = kept_json(path)
    if isinstance(kept, list) and all(isinstance(text, str) for text in kept):
        return tuple(kept)
    generator = torch.Generator().manual_seed(seed)
    texts = [
        _written(model, _STARTS[number % len(_STARTS)], tokens, generator)
        for tokens, count in lengths
        for number in range(count)
    ]
    keep_json(path, texts)
    return tuple(texts)


@torch.no_grad()
def _written(model: Model, start: str, count: int, generator: torch.Generator, among: int = 5) -> str:
    """A start continued by `count` tokens, each drawn among the most likely, and a full stop."""
    ids = list(model.tokenize(start))
    tokenizer = model.tokenize.tokenizer
    assert tokenizer is not None  # it has just made tokens
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)
    for _ in range(count):
        logits = model.token_logits(torch.tensor([ids], device=model.device))[0, -1].float().cpu()
        logits[special] = float("-inf")
        best = logits.topk(min(among, len(logits)))
        ids.append(int(best.indices[torch.multinomial(best.values.softmax(-1), 1, generator=generator)]))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return " ".join(text.split()).rstrip(".") + "."
