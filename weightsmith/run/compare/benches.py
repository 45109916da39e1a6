"""What a comparison measures on: a model with its requests, what is preserved, and what proves an edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from weightsmith.data.images import ImageSet
from weightsmith.data.texts import Knowledge, TextSet
from weightsmith.delta import Delta
from weightsmith.edit import Editor, make_editor
from weightsmith.evaluate import KnowledgeAnswers, answer, editing, headline, knowledge
from weightsmith.measure import Interval, Predictions
from weightsmith.models import Model
from weightsmith.request import ImageRequest, Request, TextRequest
from weightsmith.run.compare.draws import Draws
from weightsmith.run.knowledge.language import Kept

_WRITING, _TEXT_TOKENS = 16, 60
"""Requests of a batch from which the model writes by itself, and how many tokens: writing takes most of the time."""


Settings = Mapping[str, dict[str, Any]]
"""Method → hyper-parameters that differ from its defaults."""


class Bench(Protocol):
    """Where cells are measured."""

    model: Model
    draws: Draws
    names: tuple[str, ...]

    def editor(self, method: str) -> Editor:
        """A method with its defaults for this kind of model."""
        ...

    def depends(self) -> dict[str, Any]:
        """What every cell's numbers depend on, beside its method and requests."""
        ...

    @property
    def preserve(self) -> ImageSet | TextSet | Knowledge:
        """What editors preserve."""
        ...

    def keeping(self, requests: Sequence[Request]) -> ImageSet | TextSet | Knowledge:
        """What they preserve when these are edited: nothing by which the edit is judged."""
        ...

    def measure(self, seed: int, size: int, delta: Delta) -> dict[str, Interval]:
        """What a delta did that was solved for the first `size` requests of a seed, under `names`."""
        ...


@dataclass(eq=False)
class TextBench:
    """A language model: the unedited model is asked once a seed, and of a smaller batch that is a part of the larger."""

    model: Model
    draws: Draws
    kept: Kept
    settings: Settings

    names = (
        "efficacy", "paraphrase", "neighbourhood", "composite", "efficacy_accuracy", "paraphrase_accuracy",
        "neighbourhood_accuracy", "efficacy_magnitude", "paraphrase_magnitude", "neighbourhood_magnitude", "fluency",
        "fluency_before", "perplexity", "perplexity_before", "drift",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self._asked: dict[int, tuple[KnowledgeAnswers, KnowledgeAnswers]] = {}

    @property
    def preserve(self) -> TextSet | Knowledge:
        return self.kept.preserve

    def keeping(self, requests: Sequence[Request]) -> TextSet | Knowledge:
        return self.kept.without(_texts(requests))

    def editor(self, method: str) -> Editor:
        # A vocabulary is too wide for gradient steps over all of it.
        own: dict[str, Any] = {"closed_form": True} if method == "head" else {}
        return make_editor(method, **own | self.settings.get(method, {}))

    def depends(self) -> dict[str, Any]:
        aside = self.kept.aside.digest() if self.kept.aside is not None else ""
        return {"aside": aside, "writing": [_WRITING, _TEXT_TOKENS]}

    @cached_property
    def _perplexity(self) -> float:
        return self.kept.perplexity(self.model)

    def _before(self, seed: int) -> tuple[KnowledgeAnswers, KnowledgeAnswers]:
        """What the unedited model answers to a whole draw, and what it writes of the first requests."""
        if seed not in self._asked:
            requests = _texts(self.draws[seed])
            self._asked[seed] = (
                answer(self.model, requests, free=False, title="before"),
                answer(self.model, requests[:_WRITING], new_tokens=_TEXT_TOKENS, seed=seed, title="before"),
            )
        return self._asked[seed]

    def measure(self, seed: int, size: int, delta: Delta) -> dict[str, Interval]:
        requests = _texts(self.draws[seed])[:size]
        asked, written = (first(answers, size) for answers in self._before(seed))
        report = knowledge(self.model, requests, delta, before=asked, generate=False)
        texts = knowledge(self.model, requests[:_WRITING], delta, before=written, new_tokens=_TEXT_TOKENS, seed=seed)
        after = report.scores_after
        parts = ("efficacy", "paraphrase", "neighbourhood")
        with delta.on(self.model):
            perplexity = self.kept.perplexity(self.model)
        return {
            **headline(report),
            **{f"{name}_accuracy": one for name, one in zip(parts, after.accuracy, strict=True)},
            **{f"{name}_magnitude": one for name, one in zip(parts, after.magnitude, strict=True)},
            "fluency": texts.scores_after.fluency,
            "fluency_before": texts.scores_before.fluency,
            "perplexity": _bare(perplexity),
            "perplexity_before": _bare(self._perplexity),
            "drift": _bare(self.kept.drift(self.model, delta)),
        }


@dataclass(eq=False)
class ImageBench:
    """An image classifier: corrections of the validation part, the train part preserved, the held-out part the proof."""

    model: Model
    draws: Draws
    train: ImageSet
    held_out: ImageSet
    views: str
    n_views: int
    settings: Settings

    names = ("efficacy", "paraphrase", "neighbourhood", "composite", "repaired", "net_accuracy_change", "accuracy")

    def __post_init__(self) -> None:
        self._before: Predictions | None = None

    @property
    def preserve(self) -> ImageSet:
        return self.train

    def keeping(self, requests: Sequence[Request]) -> ImageSet:  # noqa: ARG002  (held-out images are apart already)
        return self.train

    def editor(self, method: str) -> Editor:
        return make_editor(method, **self.settings.get(method, {}))

    def depends(self) -> dict[str, Any]:
        return {"held_out": self.held_out.digest(), "views": [self.views, self.n_views]}

    def measure(self, seed: int, size: int, delta: Delta) -> dict[str, Interval]:
        report = editing(
            self.model,
            [request for request in self.draws[seed][:size] if isinstance(request, ImageRequest)],
            self.held_out,
            delta,
            views=self.views,
            n_views=self.n_views,
            seed=seed,
            before=self._before,
        )
        self._before = report.before
        return {
            **headline(report),
            "repaired": report.repaired,
            "net_accuracy_change": report.net_accuracy_change,
            "accuracy": report.scores_after.accuracy,
        }


def options_of(editor: Editor) -> dict[str, Any]:
    """An editor's hyper-parameters."""
    return dataclasses.asdict(editor)  # type: ignore[call-overload,no-any-return]


def first(answers: KnowledgeAnswers, count: int) -> KnowledgeAnswers:
    """The answers to the first `count` requests alone."""
    chosen = np.array([question.request < count for question in answers.questions])
    return replace(
        answers,
        requests=answers.requests[:count],
        questions=tuple(q for q in answers.questions if q.request < count),
        nll_target=answers.nll_target[chosen],
        nll_other=answers.nll_other[chosen],
        right_share=answers.right_share[chosen],
        free=answers.free[chosen],
        said=tuple(text for text, there in zip(answers.said, chosen, strict=True) if there),
        texts=answers.texts[:count],
    )


def permuted(pool: Sequence[Request], seed: int, count: int) -> list[Request]:
    """The first `count` of a pool in the order of a seed; fewer are the first of more."""
    return [pool[i] for i in np.random.RandomState(seed).permutation(len(pool))[:count]]


def _texts(requests: Sequence[Request]) -> list[TextRequest]:
    return [request for request in requests if isinstance(request, TextRequest)]


def _bare(value: float) -> Interval:
    """A value of all tokens together, without an interval."""
    return Interval(value, float("nan"), float("nan"), 1)
