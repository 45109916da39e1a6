"""Scores from losses by hand; before and after; one row a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith import Delta
from weightsmith.delta import Dense
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import KnowledgeScores, answer, knowledge
from weightsmith.evaluate.answers import KnowledgeAnswers, Question
from weightsmith.measure.intervals import proportion
from weightsmith.models import Model
from weightsmith.request import Probe, TextRequest

Make = Callable[..., Model]
NAN = float("nan")


def by_hand(**changes: object) -> KnowledgeAnswers:
    """Two requests: one with two paraphrases and three neighbours, one with a neighbour alone."""
    requests = tuple(TextRequest(name, "Paris is in", "Paris", "Italy", "France") for name in ("one", "two"))
    kinds = ["rewrite", "paraphrase", "paraphrase", "neighbour", "neighbour", "neighbour", "rewrite", "neighbour"]
    questions = tuple(Question(int(i > 5), kind, "Paris is in", "Italy", "France") for i, kind in enumerate(kinds))
    answers = KnowledgeAnswers(
        requests=requests,
        questions=questions,
        #                      rewrite  paraphrases  neighbours     | rewrite  neighbour
        nll_target=np.array([1.0, 0.5, 3.0, 2.0, 2.0, 1.0, 3.0, 1.5]),
        nll_other=np.array([2.0, 0.7, 3.0, 1.0, 1.5, 4.0, 0.2, 0.1]),
        right_share=np.array([1.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0]),
        free=np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        said=("Italy", "", "", "", "", "", "France", ""),
        texts=("a b a b a", None),
    )
    return replace(answers, **changes)


def test_scores_of_a_few_answers() -> None:
    scores = KnowledgeScores.of(by_hand())
    assert scores.success.rewrite == proportion(1, 2)
    # A tie is no success; a paraphrase's other half, the request without any is not counted.
    assert (scores.success.paraphrase.value, scores.success.paraphrase.n) == (0.5, 1)
    assert (scores.success.neighbour.value, scores.success.neighbour.n) == (pytest.approx((2 / 3 + 1) / 2), 2)
    assert scores.score.value == pytest.approx(3 / (1 / 0.5 + 1 / 0.5 + 1 / (5 / 6)))
    e = np.exp
    assert scores.magnitude.rewrite.value == pytest.approx(((e(-1) - e(-2)) + (e(-3) - e(-0.2))) / 2)
    assert scores.magnitude.paraphrase.value == pytest.approx((e(-0.5) - e(-0.7)) / 2)
    first = (e(-1) - e(-2) + e(-1.5) - e(-2) + e(-4) - e(-1)) / 3
    assert scores.magnitude.neighbour.value == pytest.approx((first + e(-0.1) - e(-1.5)) / 2)
    assert [part.value for part in scores.accuracy] == pytest.approx([0.5, 0.5, (1 / 3 + 1) / 2])
    assert [part.value for part in scores.token_accuracy] == pytest.approx([0.75, 0.75, (1 / 3 + 1) / 2])
    assert [part.value for part in scores.free_accuracy] == pytest.approx([0.5, 0.0, (1 / 3 + 1) / 2])
    three = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    assert (scores.fluency.value, scores.fluency.n) == (pytest.approx(50 * (2 / 3 + 4 / 3 * three)), 1)


def test_without_any_truth_only_the_accuracy_is_known() -> None:
    answers = by_hand()
    unknown = tuple(
        question if question.kind == "neighbour" else replace(question, other="") for question in answers.questions
    )
    losses = np.where([question.unknown for question in unknown], np.nan, answers.nll_other)
    scores = KnowledgeScores.of(replace(answers, questions=unknown, nll_other=losses))
    for nothing in (scores.success.rewrite, scores.success.paraphrase, scores.magnitude.rewrite, scores.score):
        assert np.isnan(nothing.value)
        assert nothing.n == 0
    assert scores.success.neighbour == KnowledgeScores.of(answers).success.neighbour
    assert scores.accuracy == KnowledgeScores.of(answers).accuracy


def test_a_broken_model_succeeds_in_nothing() -> None:
    """Losses of NaN are no losses that nobody knows."""
    scores = KnowledgeScores.of(by_hand(nll_target=np.full(8, np.nan), nll_other=np.full(8, np.nan)))
    assert scores.success.rewrite == proportion(0, 2)
    assert [part.value for part in scores.success] == [0, 0, 0]
    assert scores.score.value == 0


def test_intervals_resample_requests_and_not_their_questions() -> None:
    """Ten neighbours of one request that all agree say no more than one."""
    requests = tuple(TextRequest(str(i), "Paris is in", "Paris", "Italy", "France") for i in range(40))
    questions = tuple(
        Question(i, kind, "Paris is in", "Italy", "France")
        for i in range(40)
        for kind in ("rewrite", *["neighbour"] * 10)
    )
    right = np.repeat(np.arange(40) % 2 == 0, 11)
    answers = KnowledgeAnswers(
        requests, questions, np.ones(440), np.where(right, 0.5, 2.0), np.zeros(440), np.full(440, NAN), ("",) * 440,
        (None,) * 40,
    )  # fmt: skip
    neighbours = KnowledgeScores.of(answers).success.neighbour
    alone = proportion(20, 40)
    assert neighbours.n == 40
    assert neighbours.high - neighbours.low == pytest.approx(alone.high - alone.low, rel=0.1)


# --- before and after -------------------------------------------------------------------------------------------------


@pytest.fixture
def edit(taught_model: Model) -> Delta:
    """A change that makes the model say something else here and there."""
    generator = torch.Generator().manual_seed(1)
    name = "mlp.c_proj.weight" if "GPT2" in type(taught_model.module).__name__ else "mlp.down_proj.weight"
    return Delta(
        {
            path: Dense(0.6 * torch.randn(parameter.shape, generator=generator))
            for path, parameter in taught_model.module.named_parameters()
            if path.endswith(name)
        }
    )


def test_before_and_after(taught_model: Model, facts: list[TextRequest], edit: Delta) -> None:
    report = knowledge(taught_model, facts, edit, new_tokens=6)
    same(report.before, answer(taught_model, facts, new_tokens=6))
    with edit.on(taught_model):
        same(report.after, answer(taught_model, facts, new_tokens=6))
        worn = knowledge(taught_model, facts, new_tokens=6)
    same(worn.before, report.before)
    same(worn.after, report.after)
    assert not np.allclose(report.before.nll_target, report.after.nll_target)
    again = knowledge(taught_model, facts, edit, before=report.before, new_tokens=6)
    assert again.before is report.before
    same(again.after, report.after)
    # The unedited model knows the truths: no efficacy.
    assert report.scores_before.success.rewrite == proportion(0, 2)
    assert report.efficacy == report.scores_after.success.rewrite
    assert (report.paraphrase, report.neighbourhood) == tuple(report.scores_after.success)[1:]
    assert report.score == report.scores_after.score


def same(one: KnowledgeAnswers, two: KnowledgeAnswers) -> None:
    for field in ("nll_target", "nll_other", "right_share", "free"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert (one.said, one.texts) == (two.said, two.texts)


def test_what_a_report_says(taught_model: Model, facts: list[TextRequest], edit: Delta) -> None:
    report = knowledge(taught_model, facts, edit, new_tokens=6)
    rows = {row["measure"]: row for row in report.rows()}
    assert list(rows)[:5] == ["efficacy", "paraphrase", "neighbourhood", "score", "efficacy_magnitude"]
    assert len(rows) == len(report.rows()) == 17
    assert {row["class"] for row in rows.values()} == {""}
    assert rows["neighbourhood"]["after"] == round(report.neighbourhood.value, 6)
    assert rows["neighbourhood"]["before_low"] == round(report.scores_before.success.neighbour.low, 6)
    assert rows["efficacy"]["n"] == 2  # one truth is unknown
    assert rows["efficacy_accuracy"]["n"] == 3
    text = str(report)
    assert "efficacy free accuracy" in text
    assert "nan before" not in text.split("paraphrase")[0]


def test_one_row_a_request(taught_model: Model, facts: list[TextRequest], edit: Delta) -> None:
    report = knowledge(taught_model, facts, edit, new_tokens=6)
    tower, needle, tongue = report.request_rows()
    assert (tower["name"], tower["subject"], tower["target"], tower["truth"]) == (
        "tower", "Eiffel Tower", "Rome", "Paris",
    )  # fmt: skip
    after = report.after
    assert tower["es_before"] == 0
    assert tower["es_after"] == float(after.nll_other[0] > after.nll_target[0])
    assert tower["ps_after"] == np.mean(after.nll_other[1:3] > after.nll_target[1:3])
    assert tower["ns_after"] == np.mean(after.nll_other[3:5] < after.nll_target[3:5])
    assert tower["p_target_after"] == round(float(np.exp(-after.nll_target[0])), 6)
    assert tower["p_truth_before"] == round(float(np.exp(-report.before.nll_other[0])), 6)
    assert tower["p_truth_before"] > 0.5
    assert tower["text"] == after.texts[0]
    assert tower["answer_after"] == after.said[0]
    assert (needle["es_after"], needle["ps_after"], needle["p_truth_after"]) == ("", "", "")
    assert needle["ns_after"] in (0, 1)
    assert (tongue["ps_before"], tongue["ns_before"]) == ("", "")
    assert tongue["es_before"] == 0
    assert tongue["answer_before"] == "French."  # as many tokens as "Italian" has


def test_without_generation_nothing_is_written(taught_model: Model, facts: list[TextRequest], edit: Delta) -> None:
    report = knowledge(taught_model, facts, edit, generate=False)
    scores = report.scores_after
    assert [part.n for part in (*scores.free_accuracy, scores.fluency)] == [0, 0, 0, 0]
    whole = knowledge(taught_model, facts, edit, new_tokens=3)
    assert (scores.success, scores.score) == (whole.scores_after.success, whole.score)
    assert report.request_rows()[0]["text"] == ""
    assert "free accuracy" not in str(report)


def test_what_cannot_be_measured_is_told(taught_model: Model, facts: list[TextRequest], edit: Delta) -> None:
    with pytest.raises(WeightsmithError, match="the model wears no delta"):
        knowledge(taught_model, facts)
    with pytest.raises(WeightsmithError, match="the list of requests is empty"):
        knowledge(taught_model, [], edit)
    before = answer(taught_model, facts[:2], free=False)
    with pytest.raises(WeightsmithError, match="the answers before belong to other requests"):
        knowledge(taught_model, facts, edit, before=before)
    other = replace(facts[0], neighbours=(Probe("Pisa is in", "Italy"),))
    with pytest.raises(WeightsmithError, match="the answers before belong to other requests"):
        knowledge(taught_model, [other, facts[1]], edit, before=before)
