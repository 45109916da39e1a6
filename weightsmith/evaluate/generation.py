"""Text that a language model writes by itself, many prompts at a time, and how varied it is."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import Fitting
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.progress import progress

BATCH = 64
"""Prompts in one pass."""


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    counts: Sequence[int],
    *,
    top_k: int = 1,
    seed: int = 0,
    batch_size: int = BATCH,
    title: str = "generating",
) -> list[tuple[int, ...]]:
    """The tokens with which the model goes on from each prompt, a token that ends a text being one like any other.

    Prompts of different length share a batch, padded on the left, where the mask hides the padding and every token has
    the position that it has alone: what comes out does not depend on the batches.

    Args:
        prompts: token ids of each, at least one.
        counts: how many new tokens each gets; fewer where the model's positions run out.
        top_k: 1 takes the most probable token; otherwise one of so many is drawn, by their probabilities.
        seed: prompt i is continued by a stream of random numbers that depends on (seed, i) alone.

    Raises:
        WeightsmithError: a prompt that is empty, or longer than the model takes.
    """
    limit = model.n_tokens
    for prompt in prompts:
        if not 0 < len(prompt) <= limit:
            raise WeightsmithError(
                f"a prompt has {len(prompt)} tokens: this model goes on from 1 to {limit} of them, give so many"
            )
    # The last token is written and never read, so it needs no position.
    steps = [min(count, limit + 1 - len(prompt)) for prompt, count in zip(prompts, counts, strict=True)]
    written: list[tuple[int, ...]] = [()] * len(prompts)
    order = sorted((i for i, wanted in enumerate(steps) if wanted > 0), key=lambda i: (steps[i], len(prompts[i]), i))
    with progress(title, len(order)) as advance:

        def share(batch: list[int]) -> tuple[Any, ...]:
            most = steps[batch[-1]]
            draws = None if top_k == 1 else np.stack([np.random.default_rng([seed, i]).random(most) for i in batch])
            return model, [prompts[i] for i in batch], most, top_k, draws

        batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        for batch, tokens in ranks.dealt(_continued, batches, share):
            for row, i in zip(tokens.tolist(), batch, strict=True):
                written[i] = tuple(row[: steps[i]])
            advance(len(batch))
    return written


def fluency(text: str) -> float:
    """Variety of a text: 100 · mean(⅔ H₂, 4/3 H₃), H_n the entropy in bits of its n-grams of words.

    The generation entropy of Meng et al. 2022 (ROME), with the weights of their code. A word is a run of letters and
    digits, or a single sign of punctuation. A text of too few words has no n-grams, and nothing varied: 0.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    pairs = Counter(pairwise(words))
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    two, three = (float(entropy(list(grams.values()), base=2)) if grams else 0.0 for grams in (pairs, triples))
    return 100 * (2 / 3 * two + 4 / 3 * three) / 2


@torch.no_grad()
def _continued(
    model: Model, prompts: list[tuple[int, ...]], steps: int, top_k: int, draws: np.ndarray | None
) -> Tensor:
    """(prompts, steps) new tokens. `draws` are (prompts, steps) numbers from 0 to 1, None for the most probable token."""

    def some(which: slice) -> Tensor:
        return _written(model, prompts[which], steps, top_k, None if draws is None else draws[which])

    return torch.cat(list(Fitting("generating").parts(some, len(prompts))))


def _written(model: Model, prompts: list[tuple[int, ...]], steps: int, top_k: int, draws: np.ndarray | None) -> Tensor:
    """As `_continued`, all at once."""
    device, longest = model.device, max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # The keys and values of what was read go by another name since transformers 5.24, which warns of the old one.
    held = "cache" if "cache" in inspect.signature(model.module.forward).parameters else "past_key_values"
    cache = None
    new: list[Tensor] = []
    for step in range(steps):
        out = model.module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{held: cache},
        )
        cache = getattr(out, held)
        chosen = _chosen(out.logits[:, -1], top_k, None if draws is None else torch.from_numpy(draws[:, step]))
        new.append(chosen)
        ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        # A row that has all its tokens runs on with the others, and must not ask for a position that is not there.
        positions = (positions[:, -1:] + 1).clamp(max=model.n_tokens - 1)
    return torch.stack(new, 1).cpu()


def _chosen(logits: Tensor, top_k: int, draw: Tensor | None) -> Tensor:
    """(n,) the token of each row of logits (n, vocabulary)."""
    if draw is None:
        return logits.argmax(-1)
    best, tokens = logits.double().topk(min(top_k, logits.shape[-1]), dim=-1)
    passed = best.softmax(-1).cumsum(-1)[:, :-1] <= draw.to(logits.device)[:, None]
    return tokens.gather(1, passed.sum(1, keepdim=True))[:, 0]
