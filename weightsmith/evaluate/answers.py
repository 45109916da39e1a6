"""What a language model answers to requests, to their paraphrases and to questions about their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith import ranks
from weightsmith.batches import Fitting
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.generation import BATCH, generate
from weightsmith.models import Model
from weightsmith.progress import progress
from weightsmith.request import TextRequest

KINDS = ("rewrite", "paraphrase", "neighbour")
"""What is asked: the request's own prompt, another way to ask it, something else that should stay as it is."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the two answers between which the model is asked to choose.

    Attributes:
        request: place of the request that it belongs to; kind: one of `KINDS`.
        target: the target of the request.
        other: the truth that the target replaces, "" when unknown; a neighbour's own answer.
    """

    request: int
    kind: str
    prompt: str
    target: str
    other: str

    @property
    def unknown(self) -> bool:
        """Whether there is no second answer to compare the target with."""
        return self.kind != "neighbour" and not self.other

    @property
    def wanted(self) -> str:
        """The answer that a good edit leads to."""
        return self.other if self.kind == "neighbour" else self.target


@dataclass(frozen=True, eq=False)
class KnowledgeAnswers:
    """What one model said, one entry a question; "wanted" is the target, or of a neighbour its own answer.

    Attributes:
        requests: what was asked about; questions: the prompts of all of them.
        nll_target, nll_other: (questions,) negative log-likelihood of both answers, mean over their tokens; NaN for an
            unknown truth.
        right_share: (questions,) share of the wanted answer's tokens that are the most probable one, each given those
            before it.
        free: (questions,) 1 where the tokens that the model writes by itself are the wanted answer's, else 0; NaN where
            nothing was generated.
        said: the answer that it writes by itself, as many tokens as the wanted one has; "" where nothing was generated.
        texts: one a request, how it goes on from the prompt at length; None where nothing was generated.
    """

    requests: tuple[TextRequest, ...]
    questions: tuple[Question, ...]
    nll_target: np.ndarray
    nll_other: np.ndarray
    right_share: np.ndarray
    free: np.ndarray
    said: tuple[str, ...]
    texts: tuple[str | None, ...]

    @property
    def exact(self) -> np.ndarray:
        """(questions,) 1 where every token of the wanted answer is the most probable one, else 0."""
        exact: np.ndarray = (self.right_share == 1).astype(np.float64)
        return exact

    def by_request(self, kind: str, values: np.ndarray) -> np.ndarray:
        """(requests,) mean over the questions of one kind; NaN where a request has none, or none with a value."""
        chosen = np.array([question.kind == kind for question in self.questions]) & ~np.isnan(values)
        owners = np.array([question.request for question in self.questions])[chosen]
        count = np.bincount(owners, minlength=len(self.requests))
        total = np.bincount(owners, weights=values[chosen], minlength=len(self.requests))
        mean: np.ndarray = np.divide(total, count, out=np.full(len(self.requests), np.nan), where=count > 0)
        return mean


def answer(
    model: Model,
    requests: Sequence[TextRequest],
    *,
    free: bool = True,
    new_tokens: int = 100,
    seed: int = 0,
    batch_size: int = BATCH,
    title: str = "asking",
) -> KnowledgeAnswers:
    """Ask a model everything that belongs to the requests.

    Args:
        free: whether the model also writes by itself: answers greedily, and from each request's prompt a text of up to
            `new_tokens` tokens, each drawn from the 5 most probable ones.
        seed: of those draws; text i depends on (seed, i) and the model alone.
        batch_size: prompts in one pass; it bounds the memory and changes nothing else.

    Raises:
        WeightsmithError: no requests, a model that reads no text, an empty prompt, or one too long for the model.
    """
    if not requests:
        raise WeightsmithError("there is nothing to ask about: the list of requests is empty, give at least one")
    questions = tuple(_questions(requests))
    nlls, right_shares = likelihoods(
        model,
        [
            _tokens(model, requests, question, text)
            for question in questions
            for text in (question.target, question.target if question.unknown else question.other)
        ],
        batch_size,
        title,
    )
    nlls, right_shares = nlls.reshape(-1, 2), right_shares.reshape(-1, 2)
    unknown = np.array([question.unknown for question in questions])
    own = np.array([question.kind == "neighbour" for question in questions])
    written, said = np.full(len(questions), np.nan), ("",) * len(questions)
    texts: tuple[str | None, ...] = (None,) * len(requests)
    if free:
        written, said = _written(model, requests, questions, batch_size, title)
        texts = _texts(model, requests, new_tokens, seed, batch_size, title)
    return KnowledgeAnswers(
        requests=tuple(requests),
        questions=questions,
        nll_target=nlls[:, 0],
        nll_other=np.where(unknown, np.nan, nlls[:, 1]),
        right_share=np.where(own, right_shares[:, 1], right_shares[:, 0]),
        free=written,
        said=said,
        texts=texts,
    )


@torch.no_grad()
def likelihoods(
    model: Model,
    texts: Sequence[tuple[tuple[int, ...], int]],
    batch_size: int = BATCH,
    title: str = "reading",
) -> tuple[np.ndarray, np.ndarray]:
    """How probable the ends of texts are, each token given all before it.

    Texts that differ in their last token alone, such as two answers of one token, are read in one row of a batch.

    Args:
        texts: the token ids of each, and how many at its end are the answer; both as `Tokenize.continued` gives them.

    Returns:
        (texts,) float64 mean negative log-likelihood of the answer's tokens in nats, and the share of them that are the
        model's most probable token.
    """
    owners: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, _) in enumerate(texts):
        owners.setdefault(ids[:-1], []).append(i)  # nothing is read behind the last token
    inputs = sorted(owners, key=lambda ids: (len(ids), ids))
    nll, right = np.zeros(len(texts)), np.zeros(len(texts))
    with progress(title, len(inputs)) as advance:

        def share(batch: list[tuple[int, ...]]) -> tuple[Any, ...]:
            return model, batch, [[(i, *texts[i]) for i in owners[ids]] for ids in batch], batch_size

        batches = [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
        for batch, found in ranks.dealt(_losses, batches, share):
            for which, losses, hits in found:
                np.add.at(nll, which, losses)
                np.add.at(right, which, hits)
            advance(len(batch))
    counts = np.array([count for _, count in texts])
    return nll / counts, right / counts


@torch.no_grad()
def _losses(
    model: Model,
    batch: Sequence[tuple[int, ...]],
    owners: Sequence[Sequence[tuple[int, tuple[int, ...], int]]],
    batch_size: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(numbers of texts, losses, whether they are the most probable token) of the answers' tokens, in pieces.

    Args:
        batch: rows of ids. owners: of each row, the (number, ids, count of the answer's) of the texts that begin with it.
    """

    def read(which: slice) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        rows, of_rows = batch[which], owners[which]
        padded = torch.zeros(len(rows), len(rows[-1]), dtype=torch.int64)  # they come by length
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = torch.tensor(ids)
        hidden = model.run_blocks(0, model.embed(padded.to(model.device)))
        places = torch.tensor(
            [
                (row, len(ids) - count + k, text[len(ids) - count + k + 1], i)
                for row, ids in enumerate(rows)
                for i, text, count in of_rows[row]
                for k in range(count)
            ]
        )
        found = []
        for part in torch.split(places, min(batch_size, len(rows))):  # a vocabulary is wide: logits of the answers only
            losses, hits = _read(model, hidden, part)
            found.append((part[:, 3].numpy(), losses.cpu().numpy(), hits.cpu().numpy()))
        return found

    return [one for some in Fitting("answers are read").parts(read, len(batch)) for one in some]


def _read(model: Model, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(places,) loss in float64, and whether it is the most probable token, of (row, position, token, …) places."""
    rows, positions, tokens = places.to(hidden.device).T[:3]
    logits = model.read_out(hidden[rows, positions]).double()
    losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    return losses, logits.argmax(-1) == tokens


def _questions(requests: Sequence[TextRequest]) -> list[Question]:
    asked: list[Question] = []
    for i, request in enumerate(requests):
        asked.append(Question(i, "rewrite", request.prompt, request.target, request.truth))
        asked += [Question(i, "paraphrase", text, request.target, request.truth) for text in request.paraphrases]
        asked += [Question(i, "neighbour", probe.prompt, request.target, probe.answer) for probe in request.neighbours]
    return asked


def _tokens(
    model: Model, requests: Sequence[TextRequest], question: Question, text: str
) -> tuple[tuple[int, ...], int]:
    """The question with an answer, checked: something must stand before the answer, and all of it must fit."""
    ids, count = model.tokenize.continued(question.prompt, text)
    name = requests[question.request].name
    if len(ids) == count:
        raise WeightsmithError(f"a {question.kind} of request {name} has an empty prompt: give one, or leave it out")
    if len(ids) - 1 > model.n_tokens:
        raise WeightsmithError(
            f"a {question.kind} of request {name} has {len(ids)} tokens with its answer and this model reads "
            f"{model.n_tokens}: shorten its prompt, or leave the request out"
        )
    return ids, count


def _written(
    model: Model, requests: Sequence[TextRequest], questions: Sequence[Question], batch_size: int, title: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(questions,) 1 where the greedy answer is the wanted one, and the answers as text."""
    wanted = [_tokens(model, requests, question, question.wanted) for question in questions]
    # From the prompt as it is typed: where the answer's first token reaches back into it, that is another one.
    asked = [(model.tokenize(question.prompt), count) for question, (_, count) in zip(questions, wanted, strict=True)]
    different = list(dict.fromkeys(asked))  # neighbours of one relation are often the same
    written = generate(model, *zip(*different, strict=True), batch_size=batch_size, title=f"{title}: answers")
    found = dict(zip(different, written, strict=True))
    answers = [found[one] for one in asked]
    right = [float(words == ids[-count:]) for words, (ids, count) in zip(answers, wanted, strict=True)]
    return np.array(right), tuple(_read_back(model, words).strip() for words in answers)


def _texts(
    model: Model, requests: Sequence[TextRequest], new_tokens: int, seed: int, batch_size: int, title: str
) -> tuple[str | None, ...]:
    prompts = [model.tokenize(request.prompt) for request in requests]
    written = generate(
        model, prompts, [new_tokens] * len(prompts), top_k=5, seed=seed, batch_size=batch_size, title=f"{title}: texts"
    )
    return tuple(_read_back(model, tokens) if tokens else None for tokens in written)


def _read_back(model: Model, tokens: Sequence[int]) -> str:
    """Tokens as text, without those that only begin or end one."""
    tokenizer = model.tokenize.tokenizer
    assert tokenizer is not None, "it has read the prompts"
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
