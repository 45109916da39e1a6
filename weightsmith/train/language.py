"""Train a language model on texts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.train.loop import FitOptions, History, Training
from weightsmith.train.sharing import Batch

_NOTHING = -100
"""Stands where there is no next token to foresee."""


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(FitOptions):
    """Hyper-parameters: AdamW, linear warm-up then cosine decay, gradient norm clipped to 1.

    Attributes:
        epochs, lr, weight_decay: as usual; batch_size: rows of a batch.
        warmup: share of all steps over which the learning rate rises.
        length: tokens of a row at most; it holds as many whole texts as fit.
        seed: of the order of the texts and of what stands between them.
    """

    length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 2:
            raise WeightsmithError(f"rows of {self.length} tokens are asked for: give a length of at least 2")


def fit_language(
    model: Model,
    texts: Sequence[str],
    options: LanguageOptions,
    checkpoint: Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> History:
    """Train `model` in place to foresee the next token of texts, and leave it with the weights of the last epoch.

    In every epoch the texts are shuffled and packed into rows anew, so that nothing can be learned from what stands before
    a text. Between two texts of a row is a space or the end token, by chance: a text is known at a start and among others.

    The checkpoint is that of `fit`: a finished training is loaded, a killed one is continued with `resume`, and the result
    is that of an undisturbed run at the same thread count.

    Args:
        on_epoch: called with the rows so far after every epoch; train_accuracy is that of the next token.

    Raises:
        WeightsmithError: no text, an empty one, one that is longer than a row, rows longer than the model's positions, a
            model without a tokenizer that has an end token; and what `fit` refuses.
    """
    return _LanguageTraining(model, texts, options, checkpoint, on_epoch).go(resume)


class _LanguageTraining(Training):
    data_words = {"texts": "other texts"}  # noqa: RUF012

    def __init__(
        self,
        model: Model,
        texts: Sequence[str],
        options: LanguageOptions,
        checkpoint: Path,
        on_epoch: Callable[[list[dict[str, float]]], None] | None,
    ) -> None:
        if options.length > model.n_tokens:
            raise WeightsmithError(
                f"rows of {options.length} tokens are asked for and {model.name} reads {model.n_tokens}: give a length of at "
                "most so many"
            )
        self.length = options.length
        self.first, self.inner, self.end = _encoded(model, texts, options.length)
        self.packed = [self._pack(options.seed, epoch) for epoch in range(options.epochs)]
        steps = [math.ceil(len(rows) / options.batch_size) for rows in self.packed]
        digest = hashlib.sha256(json.dumps([self.first, self.inner, self.end]).encode()).hexdigest()
        super().__init__(model, options, steps, {"texts": digest}, checkpoint, on_epoch)

    def _pack(self, seed: int, epoch: int) -> list[list[tuple[int, bool]]]:
        """Rows of (text, whether the end token stands before it); they depend on seed and epoch alone."""
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.first)).tolist()
        ended = (random.random(len(order)) < 0.5).tolist()
        rows: list[list[tuple[int, bool]]] = []
        room = 0
        for text, end in zip(order, ended, strict=True):
            needed = len(self.first[text]) + 1 if end else len(self.inner[text])
            if needed <= room:
                rows[-1].append((text, end))
                room -= needed
            else:
                rows.append([(text, False)])
                room = self.length - len(self.first[text])
        return rows

    def _forward(self, epoch: int, step: int) -> Batch | None:
        rows = self.packed[epoch][step * self.options.batch_size : (step + 1) * self.options.batch_size]
        rows = rows[self.share.of(len(rows))]
        if not rows:
            return None
        filled = [self._ids(row) for row in rows]
        ids = torch.full((len(rows), max(map(len, filled))), self.end)
        wanted = torch.full_like(ids, _NOTHING)
        for place, row in enumerate(filled):
            ids[place, : len(row)] = torch.tensor(row)
            wanted[place, : len(row) - 1] = ids[place, 1 : len(row)]
        wanted = wanted[:, :-1].to(self.device)
        logits = self.model.token_logits(ids[:, :-1].to(self.device))  # padding comes last, and nothing looks ahead
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_NOTHING)
        return Batch(loss, int((logits.argmax(-1) == wanted).sum()), int((wanted != _NOTHING).sum()))

    def _ids(self, row: list[tuple[int, bool]]) -> list[int]:
        ids = list(self.first[row[0][0]])
        for text, end in row[1:]:
            ids += [self.end, *self.first[text]] if end else self.inner[text]
        return ids

    def _measure(self) -> dict[str, float]:
        return {}

    def _score(self, row: dict[str, float]) -> float:
        return row["epoch"]


def _encoded(model: Model, texts: Sequence[str], length: int) -> tuple[list[list[int]], list[list[int]], int]:
    """(ids of each text at a start, ids of each behind another one and a space, the end token)."""
    tokenizer: Any = model.tokenize.tokenizer
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise WeightsmithError(f"{model.name} has no tokenizer with an end token: give a model that was made with one")
    if not texts:
        raise WeightsmithError("there is nothing to train on: give at least one text")
    empty = [number for number, text in enumerate(texts) if not text.strip()]
    if empty:
        raise WeightsmithError(f"text {empty[0]} is empty: leave it out")
    first = tokenizer(list(texts), verbose=False)["input_ids"]
    inner = tokenizer([f" {text}" for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    longest = max(max(map(len, first)), max(map(len, inner)))
    if longest > length:
        raise WeightsmithError(
            f"a text has {longest} tokens and a row holds {length}: shorten it, or give a larger length"
        )
    return first, inner, int(tokenizer.eos_token_id)
