"""What a model is asked in batches is what it says when asked one question at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith import load
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.answers import KnowledgeAnswers, answer, likelihoods
from weightsmith.evaluate.generation import fluency, generate
from weightsmith.models import Model
from weightsmith.request import Probe, TextRequest

Make = Callable[..., Model]


@torch.no_grad()
def one_by_one(model: Model, prompt: str, text: str) -> tuple[float, float]:
    """Mean loss of an answer's tokens and the share that are most probable, a forward pass for each of them."""
    ids, count = model.tokenize.continued(prompt, text)
    losses, hits = [], []
    for place in range(len(ids) - count, len(ids)):
        logits = model.module(torch.tensor([ids[:place]])).logits[0, -1].double()
        losses.append(-float(logits.log_softmax(-1)[ids[place]]))
        hits.append(int(logits.argmax()) == ids[place])
    return float(np.mean(losses)), float(np.mean(hits))


@torch.no_grad()
def greedy(model: Model, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_likelihoods_are_those_of_single_passes(text_model: Model, facts: list[TextRequest]) -> None:
    answers = answer(text_model, facts, free=False)
    assert [question.kind for question in answers.questions] == [
        "rewrite", "paraphrase", "paraphrase", "neighbour", "neighbour", "rewrite", "paraphrase", "neighbour", "rewrite",
    ]  # fmt: skip
    for i, question in enumerate(answers.questions):
        target, target_share = one_by_one(text_model, question.prompt, question.target)
        assert answers.nll_target[i] == pytest.approx(target, rel=1e-5)
        if question.other:
            other, other_share = one_by_one(text_model, question.prompt, question.other)
            assert answers.nll_other[i] == pytest.approx(other, rel=1e-5)
            assert answers.right_share[i] == (other_share if question.kind == "neighbour" else target_share)
        else:
            assert np.isnan(answers.nll_other[i])
    assert np.isnan(answers.free).all()
    assert set(answers.said) == {""}
    assert set(answers.texts) == {None}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_no_batch_size_changes_the_answers(text_model: Model, facts: list[TextRequest], batch_size: int) -> None:
    whole = answer(text_model, facts, new_tokens=12)
    parts = answer(text_model, facts, new_tokens=12, batch_size=batch_size)
    same(whole, parts)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_side_on_which_a_tokenizer_pads_does_not_matter(
    language_model: Make, facts: list[TextRequest], family: str
) -> None:
    one, two = (answer(language_model(family, side), facts, new_tokens=12) for side in ("left", "right"))
    same(one, two)


def same(one: KnowledgeAnswers, two: KnowledgeAnswers) -> None:
    for field in ("nll_target", "nll_other", "right_share", "free"):
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-5)
    assert one.said == two.said
    assert one.texts == two.texts
    assert all(one.texts), "something was written"


def test_what_a_model_says_by_itself_is_right_where_it_is(taught_model: Model, facts: list[TextRequest]) -> None:
    tokenize = taught_model.tokenize
    asked = [*facts, *(replace(request, target=request.truth or "Seattle") for request in facts)]
    answers = answer(taught_model, asked, new_tokens=5)
    for i, question in enumerate(answers.questions):
        ids, count = tokenize.continued(question.prompt, question.wanted)
        alone = greedy(taught_model, tokenize(question.prompt), count)
        assert answers.free[i] == float(alone == ids[-count:])
        assert answers.said[i] == tokenize.tokenizer.decode(alone, skip_special_tokens=True).strip()
        assert answers.right_share[i] == one_by_one(taught_model, question.prompt, question.wanted)[1]
    np.testing.assert_array_equal(answers.free, answers.exact)  # no prompt ends in a space
    rewrites = answers.by_request("rewrite", answers.free)
    np.testing.assert_array_equal(rewrites, [0, 0, 0, 1, 1, 1])
    assert "Seattle" in answers.said


def test_an_answer_that_reaches_back_into_its_prompt_is_asked_for_as_the_prompt_is_typed(text_model: Model) -> None:
    """The space is a token of its own alone, and a part of the answer's first token with the answer."""
    spaced = TextRequest("tower", "The Eiffel Tower is in ", "Eiffel Tower", "Paris")
    prompt = text_model.tokenize(spaced.prompt)
    ids, count = text_model.tokenize.continued(spaced.prompt, "Paris")
    assert prompt != ids[:-count]
    answers = answer(text_model, [spaced], new_tokens=1)
    alone = greedy(text_model, prompt, count)
    assert answers.said[0] == text_model.tokenize.tokenizer.decode(alone, skip_special_tokens=True).strip()
    assert answers.nll_target[0] == pytest.approx(one_by_one(text_model, spaced.prompt, "Paris")[0], rel=1e-5)


# --- generation -------------------------------------------------------------------------------------------------------


def test_greedy_generation_is_that_of_single_prompts(text_model: Model) -> None:
    draw = np.random.default_rng(0)
    prompts = [tuple(int(i) for i in draw.integers(1, 290, length)) for length in (1, 3, 9, 4, 9, 30)]
    counts = [7, 1, 0, 12, 3, 5]
    expected = [greedy(text_model, prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    for batch_size in (1, 4, 64):
        assert generate(text_model, prompts, counts, batch_size=batch_size) == expected


def test_a_trained_model_tells_its_reference_story(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    reference = json.loads((folder / "greedy_reference.json").read_text())
    story = next(value for value in reference.values() if isinstance(value, list) and len(value) > 100)
    starts = (1, 4, 30)
    model = load(folder)
    counts = [len(story) - start for start in starts]
    written = generate(model, [tuple(story[:start]) for start in starts], counts)
    assert written == [tuple(story[start:]) for start in starts]


def test_generation_ends_where_positions_do(language_model: Make) -> None:
    model = language_model("gpt2", positions=10)
    prompts = [(5, 6, 7), tuple(range(1, 9)), tuple(range(1, 11))]
    written = generate(model, prompts, [20] * 3)
    assert [len(tokens) for tokens in written] == [8, 3, 1]  # the last of each is written and never read
    assert written == [greedy(model, prompt, len(tokens)) for prompt, tokens in zip(prompts, written, strict=True)]
    for bad in ((), tuple(range(1, 12))):
        with pytest.raises(WeightsmithError, match=f"a prompt has {len(bad)} tokens: this model goes on from 1 to 10"):
            generate(model, [bad], [1])


def test_sampled_tokens_are_the_most_probable_ones_by_their_probabilities(text_model: Model) -> None:
    prompt = text_model.tokenize("The Eiffel Tower is in")
    with torch.no_grad():
        logits = text_model.module(torch.tensor([prompt])).logits[0, -1].double()
    best = logits.topk(5)
    draws = generate(text_model, [prompt] * 4000, [1] * 4000, top_k=5, seed=1, batch_size=1000)
    counts = np.array([[tokens[0] for tokens in draws].count(int(token)) for token in best.indices])
    assert counts.sum() == 4000, "no other token"
    expected = 4000 * best.values.softmax(-1).numpy()
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_text_depends_on_its_place_and_the_seed_alone(text_model: Model) -> None:
    prompts = [text_model.tokenize(text) for text in ("Paris is", "The tower of Pisa is in", "Paris is")]
    state = torch.get_rng_state()
    texts = generate(text_model, prompts, [20] * 3, top_k=5, seed=4)
    assert texts[0] != texts[2]
    assert generate(text_model, prompts[:2], [20, 20], top_k=5, seed=4) == texts[:2]
    assert generate(text_model, prompts, [20] * 3, top_k=5, seed=5) != texts
    assert torch.equal(torch.get_rng_state(), state)


def test_fluency_is_the_entropy_of_word_pairs_and_triples() -> None:
    # a b a b a: pairs ab, ba twice each: 1 bit; triples aba twice, bab once.
    three = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    assert fluency("a b a b a") == pytest.approx(100 * (2 / 3 * 1 + 4 / 3 * three) / 2)
    assert fluency("the the the the the") == 0
    assert fluency("one") == fluency("") == 0
    assert fluency("Yes, it is!") == pytest.approx(100 * (2 / 3 * 2 + 4 / 3 * np.log2(3)) / 2)  # signs are words
    words = " ".join(str(i) for i in range(103))  # all different: 102 pairs, 101 triples
    assert fluency(words) == pytest.approx(100 * (2 / 3 * np.log2(102) + 4 / 3 * np.log2(101)) / 2)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_told(language_model: Make, facts: list[TextRequest], tiny_model: Make) -> None:
    model = language_model("gpt2", positions=16)
    with pytest.raises(WeightsmithError, match="the list of requests is empty"):
        answer(model, [])
    long = TextRequest("long", "Paris " * 20 + "is in", "Paris", "France")
    with pytest.raises(WeightsmithError, match=r"a rewrite of request long has \d+ tokens .* reads 16: shorten"):
        answer(model, [long])
    empty = TextRequest("tower", "The Eiffel Tower is in", "Eiffel Tower", "Rome", "Paris", paraphrases=("",))
    with pytest.raises(WeightsmithError, match="a paraphrase of request tower has an empty prompt"):
        answer(language_model(), [empty])
    silent = TextRequest("tower", "The Eiffel Tower is in", "Eiffel Tower", "Rome", neighbours=(Probe("I am in", ""),))
    with pytest.raises(WeightsmithError, match="the answer to 'I am in' is empty"):
        answer(language_model(), [silent])
    with pytest.raises(WeightsmithError, match="reads no text"):
        answer(tiny_model("vit"), facts)


def test_a_start_token_is_something_to_go_on_from(language_model: Make) -> None:
    empty = TextRequest("tower", "The Eiffel Tower is in", "Eiffel Tower", "Rome", "Paris", paraphrases=("",))
    answers = answer(language_model("llama"), [empty], new_tokens=2)
    assert np.isfinite(answers.nll_target).all()


def test_the_longest_text_that_fits_is_read(language_model: Make) -> None:
    model = language_model("gpt2", positions=10)
    ids = tuple(range(1, 12))  # ten are read, the last is only looked up
    nll, _ = likelihoods(model, [(ids, 3)])
    with torch.no_grad():
        expected = model.module(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)[[7, 8, 9], list(ids[8:])]
    assert nll[0] == pytest.approx(-float(expected.mean()), rel=1e-5)
