"""What an edit did to a language model: to the facts asked for, to other ways of asking, and to their neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from scipy.stats import hmean

from weightsmith.delta import Delta, lifted, wears_delta
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.answers import KINDS, KnowledgeAnswers, answer
from weightsmith.evaluate.generation import BATCH, fluency
from weightsmith.evaluate.rows import report_row
from weightsmith.measure import Interval, proportion
from weightsmith.measure.intervals import means, shares
from weightsmith.models import Model
from weightsmith.request import TextRequest

MEASURES = ("efficacy", "paraphrase", "neighbourhood")
"""What is measured of rewrites, of paraphrases and of neighbours, as tables name it."""


@dataclass(frozen=True)
class ByKind:
    """One measure of rewrites, of paraphrases and of neighbours."""

    rewrite: Interval
    paraphrase: Interval
    neighbour: Interval

    def __iter__(self) -> Iterator[Interval]:
        return iter((self.rewrite, self.paraphrase, self.neighbour))


@dataclass(frozen=True, eq=False)
class KnowledgeScores:
    """Scores of what one model answers (Meng et al. 2022, ROME, and 2023, MEMIT, on CounterFact).

    NLL(a) is the negative log-likelihood of an answer, a mean over its tokens. Each measure is a mean over requests, of
    several questions of one request their mean: they are not independent, so intervals of paraphrases, neighbours and all
    that is no share resample whole requests, and those of rewrites are Wilson's. n counts requests.

    Attributes:
        success: ES, PS: NLL(truth) > NLL(target); NS: NLL(the neighbour's answer) < NLL(target). Requests whose truth is
            unknown have neither ES nor PS, and where no truth is known both are NaN with n = 0: `accuracy` stands alone.
        score: harmonic mean of ES, PS and NS; NaN where one of them is.
        magnitude: e^−NLL(target) − e^−NLL(truth); of neighbours e^−NLL(their answer) − e^−NLL(target).
        accuracy: every token of the target (of a neighbour: of its answer) is the most probable one, teacher-forced.
        token_accuracy: share of those tokens that are, teacher-forced; what some tools report as the accuracy. Of an
            answer of several tokens it is the larger number.
        free_accuracy: the model by itself writes exactly those tokens, greedily. It can differ from `accuracy` only
            where a prompt is not tokenized alike alone and with its answer (one that ends in a space, say): two ways
            to one number otherwise, reported side by side so that this is seen and not believed.
        fluency: n-gram entropy of sampled text, `generation.fluency`. The published one counts the prompt's words too.
    """

    success: ByKind
    score: Interval
    magnitude: ByKind
    accuracy: ByKind
    token_accuracy: ByKind
    free_accuracy: ByKind
    fluency: Interval

    @classmethod
    def of(cls, answers: KnowledgeAnswers) -> KnowledgeScores:
        """Score answers."""
        success = by_kind(answers, succeeded(answers))
        target, other = np.exp(-answers.nll_target), np.exp(-answers.nll_other)
        own = np.array([question.kind == "neighbour" for question in answers.questions])
        texts = [np.nan if text is None else fluency(text) for text in answers.texts]
        return cls(
            success=_shares(success),
            score=shares(success, harmonic)[-1],
            magnitude=ByKind(*means(by_kind(answers, np.where(own, other - target, target - other)))),
            accuracy=_shares(by_kind(answers, answers.exact)),
            token_accuracy=ByKind(*shares(by_kind(answers, answers.right_share))),
            free_accuracy=_shares(by_kind(answers, answers.free)),
            fluency=means(np.array(texts)[:, None])[0],
        )


@dataclass(frozen=True, eq=False)
class KnowledgeReport:
    """One edit of a language model, measured; the counterpart of `EditReport`.

    Attributes:
        before, after: what the model answers.
        scores_before, scores_after: their scores. An unedited model that knows the truths has ES and PS near 0.
    """

    before: KnowledgeAnswers
    after: KnowledgeAnswers
    scores_before: KnowledgeScores
    scores_after: KnowledgeScores

    @property
    def efficacy(self) -> Interval:
        """ES: rewrites where the target is now more probable than the truth."""
        return self.scores_after.success.rewrite

    @property
    def paraphrase(self) -> Interval:
        """PS: the same of paraphrases."""
        return self.scores_after.success.paraphrase

    @property
    def neighbourhood(self) -> Interval:
        """NS: neighbours whose own answer is more probable than the target."""
        return self.scores_after.success.neighbour

    @property
    def score(self) -> Interval:
        """Harmonic mean of the three."""
        return self.scores_after.score

    def rows(self) -> list[dict[str, object]]:
        """The rows of `evaluation_report.csv`: measure, class (""), value before and after with 95% intervals, n."""
        return [
            report_row(name, "", one, two)
            for (name, one), (_, two) in zip(_measures(self.scores_before), _measures(self.scores_after), strict=True)
        ]

    def request_rows(self) -> list[dict[str, object]]:
        """One row a request: what was asked, how it went before and after, and what the model writes now.

        es, ps and ns are shares of its questions; p_target and p_truth are e^−NLL of its own prompt, the geometric mean
        of the answer's token probabilities. "" stands for what is unknown or was not asked.
        """
        sides = {"before": self.before, "after": self.after}
        values = {when: _by_request(answers) for when, answers in sides.items()}
        said = {
            f"answer_{when}": [
                text for text, question in zip(a.said, a.questions, strict=True) if question.kind == "rewrite"
            ]
            for when, a in sides.items()
        }
        rows: list[dict[str, object]] = []
        for i, request in enumerate(self.after.requests):
            row: dict[str, object] = {
                "name": request.name,
                "subject": request.subject,
                "target": request.target,
                "truth": request.truth,
            }
            for field in values["after"]:
                for when in sides:
                    value = float(values[when][field][i])
                    row[f"{field}_{when}"] = "" if np.isnan(value) else round(value, 6)
            row |= {column: answers[i] for column, answers in said.items()}
            row["text"] = self.after.texts[i] or ""
            rows.append(row)
        return rows

    def __str__(self) -> str:
        before, after = dict(_measures(self.scores_before)), dict(_measures(self.scores_after))
        return "\n".join(
            f"{name.replace('_', ' '):28} {before[name]} before, {after[name]} after  n={after[name].n}"
            for name in after
            if after[name].n or before[name].n
        )


def knowledge(
    model: Model,
    requests: Sequence[TextRequest],
    delta: Delta | None = None,
    *,
    before: KnowledgeAnswers | None = None,
    generate: bool = True,
    new_tokens: int = 100,
    seed: int = 0,
    batch_size: int = BATCH,
) -> KnowledgeReport:
    """Measure an edit on the requests, their paraphrases and their neighbours, before and after.

    Args:
        delta: the edit; None takes the one that the model wears: `with delta.on(model): knowledge(model, …)`.
        before: what the unedited model answers to the same requests, when it is at hand: an earlier report's `before`.
        generate: whether the model also writes by itself, which takes most of the time; without, `free_accuracy` and
            `fluency` are NaN.
        new_tokens: longest text for the fluency; `seed` of its draws.
        batch_size: prompts in one pass; it bounds the memory and changes nothing else.

    Raises:
        WeightsmithError: no delta, no requests, answers before to other requests, or a prompt that does not fit.
    """
    if delta is None and not wears_delta(model):
        raise WeightsmithError("the model wears no delta: evaluate inside `with delta.on(model)`, or pass the delta")
    if before is not None and before.requests != tuple(requests):
        raise WeightsmithError("the answers before belong to other requests: ask the unedited model about these")

    def ask(title: str) -> KnowledgeAnswers:
        return answer(
            model, requests, free=generate, new_tokens=new_tokens, seed=seed, batch_size=batch_size, title=title
        )

    if before is None:
        with nullcontext() if delta is not None else lifted(model):
            before = ask("before")
    with nullcontext() if delta is None else delta.on(model):
        after = ask("after")
    return KnowledgeReport(before, after, KnowledgeScores.of(before), KnowledgeScores.of(after))


def succeeded(answers: KnowledgeAnswers) -> np.ndarray:
    """(questions,) 1 where the better answer is the more probable one, else 0; NaN where there is one answer only.

    A model that an edit has broken until it gives NaN succeeds in nothing.
    """
    own = np.array([question.kind == "neighbour" for question in answers.questions])
    unknown = np.array([question.unknown for question in answers.questions])
    better = np.where(own, answers.nll_other < answers.nll_target, answers.nll_other > answers.nll_target)
    return np.where(unknown, np.nan, better)


def by_kind(answers: KnowledgeAnswers, values: np.ndarray) -> np.ndarray:
    """(requests, 3) means of a value of the questions, for rewrites, paraphrases and neighbours."""
    return np.stack([answers.by_request(kind, values) for kind in KINDS], 1)


def harmonic(columns: np.ndarray) -> np.ndarray:
    """(…) harmonic mean over the last axis; 0 where one is 0, NaN where one is NaN."""
    return np.asarray(hmean(columns, axis=-1))


def _by_request(answers: KnowledgeAnswers) -> dict[str, np.ndarray]:
    """(requests,) each: shares of successes, and the probabilities of both answers."""
    success = by_kind(answers, succeeded(answers))
    return {
        **dict(zip(("es", "ps", "ns"), success.T, strict=True)),
        "p_target": answers.by_request("rewrite", np.exp(-answers.nll_target)),
        "p_truth": answers.by_request("rewrite", np.exp(-answers.nll_other)),
    }


def _shares(columns: np.ndarray) -> ByKind:
    """Of rewrites, one a request, Wilson's interval."""
    rewrites = columns[~np.isnan(columns[:, 0]), 0]
    return ByKind(proportion(int(rewrites.sum()), len(rewrites)), *shares(columns)[1:])


def _measures(scores: KnowledgeScores) -> list[tuple[str, Interval]]:
    """Every measure with its name in tables."""
    groups = {
        "": scores.success,
        "_magnitude": scores.magnitude,
        "_accuracy": scores.accuracy,
        "_token_accuracy": scores.token_accuracy,
        "_free_accuracy": scores.free_accuracy,
    }
    found = [
        (name + ending, interval)
        for ending, group in groups.items()
        for name, interval in zip(MEASURES, group, strict=True)
    ]
    return [*found[:3], ("score", scores.score), *found[3:], ("fluency", scores.fluency)]
