"""How well a language model reads ordinary text, and how far an edit moved what it says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.batches import Fitting
from weightsmith.delta import Delta, lifted, wears_delta
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model


@torch.no_grad()
def perplexity(model: Model, texts: Iterable[Tensor]) -> float:
    """The exponential of the mean negative log-likelihood, over the tokens that have one before them.

    Args:
        texts: batches (n, T) of token ids, windows of text kept aside, T ≥ 2.

    Raises:
        WeightsmithError: no text, or windows that are too short or too long for the model.
    """
    total, count = 0.0, 0

    def losses(ids: Tensor) -> list[tuple[float, int]]:
        return [
            (float(F.cross_entropy(logits.float(), wanted, reduction="none").double().sum()), len(wanted))
            for logits, wanted in zip(model.token_logits(ids)[:, :-1], ids[:, 1:], strict=True)
        ]

    for windows in Fitting("text is read").each(losses, ((ids,) for ids in _windows(model, texts, shortest=2))):
        for loss, tokens in windows:
            total, count = total + loss, count + tokens
    # Of a model that an edit has broken it may be infinite, which is no error here.
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def drift(model: Model, texts: Iterable[Tensor], delta: Delta | None = None) -> float:
    """Mean KL(before ‖ after) in nats of what comes next, over every token of the texts: 0 where an edit changed nothing.

    Arguments and errors are those of `agreement`.
    """
    return agreement(model, texts, delta)[1]


@torch.no_grad()
def agreement(model: Model, texts: Iterable[Tensor], delta: Delta | None = None) -> tuple[float, float]:
    """Over every token of the texts: how often the likeliest next token stays the same, and the drift in nats.

    Args:
        texts: batches (n, T) of token ids, windows of text kept aside.
        delta: the edit; None takes the one that the model wears.

    Raises:
        WeightsmithError: no delta, or texts as in `perplexity`.
    """
    if delta is None and not wears_delta(model):
        raise WeightsmithError("the model wears no delta: measure inside `with delta.on(model)`, or pass the delta")
    if delta is not None:
        delta.check(model)

    def compared(ids: Tensor) -> list[tuple[float, int, int]]:
        """Of each window the drift, how many tokens stay, and of how many."""
        with lifted(model) if delta is None else nullcontext():
            before = model.token_logits(ids)
        with nullcontext() if delta is None else delta.on(model, check=False):  # its hash is checked once, above
            after = model.token_logits(ids)
        found = []
        for was, now in zip(before, after, strict=True):  # a window at a time: float64 of all would be twice the memory
            old, new = was.double().log_softmax(-1), now.double().log_softmax(-1)
            moved = float(F.kl_div(new, old, reduction="sum", log_target=True))
            found.append((moved, int((was.argmax(-1) == now.argmax(-1)).sum()), len(was)))
        return found

    total, same, count = 0.0, 0, 0
    for windows in Fitting("text is read").each(compared, ((ids,) for ids in _windows(model, texts, shortest=1))):
        for moved, stayed, tokens in windows:
            total, same, count = total + moved, same + stayed, count + tokens
    return same / count, total / count


def _windows(model: Model, texts: Iterable[Tensor], shortest: int) -> Iterator[Tensor]:
    seen = False
    for ids in texts:
        if ids.ndim != 2 or not shortest <= ids.shape[1] <= model.n_tokens:
            raise WeightsmithError(
                f"windows of text must be (n, T) token ids with T from {shortest} to {model.n_tokens}, "
                f"not {tuple(ids.shape)}: cut the text to that length"
            )
        if len(ids):
            seen = True
            yield ids.to(model.device)
    if not seen:
        raise WeightsmithError("there is no text to measure on: give windows of token ids")
