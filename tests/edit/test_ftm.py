"""Fine-tuning of the last map by margins: what its rows are, over every family, what holds it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.edit.conftest import CORPUS
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import Knowledge, TextSet
from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit import FTM
from weightsmith.edit.last_map import Asked, LastMap
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.edit.targets import margins
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import agreement
from weightsmith.measure import misclassified
from weightsmith.models import Model
from weightsmith.request import TextRequest

QUICK = FTM(prefix_lengths=(), lr=0.5, kl=0.3, batch=64)
PROMPTS = ("Bert plays the", "Clara lives in", "Dora plays the", "Anna was born in")


@pytest.fixture
def texts(text_model: Model) -> TextSet:
    return TextSet.of([CORPUS] * 4, text_model.tokenize, length=32)


def changed(last: LastMap) -> tuple[Tensor, Delta]:
    """Another W, and the delta that makes it."""
    step = 0.1 * torch.randn(last.weight().shape, generator=torch.Generator().manual_seed(3))
    stored = step.mT.contiguous() if last.transposed else step
    return last.weight() + step, Delta({last.name: Dense(stored)})


def test_rows_give_the_logits_of_the_whole_network(text_model: Model, facts: list[TextRequest]) -> None:
    """With the weight as it is and with another one, at every token of every answer."""
    last = LastMap.of(text_model)
    asked = last.asked(corrections_of(text_model, facts, Contexts(lookup="last")))
    other, delta = changed(last)
    expected: dict[bool, list[Tensor]] = {False: [], True: []}
    wanted: list[int] = []
    for fact in facts:
        ids, count = text_model.tokenize.continued(fact.prompt, fact.target)
        wanted += ids[-count:]
        with torch.no_grad():
            expected[False].append(text_model.token_logits(torch.tensor([ids[:-1]]))[0, -count:])
            with delta.on(text_model, check=False):
                expected[True].append(text_model.token_logits(torch.tensor([ids[:-1]]))[0, -count:])
    assert asked.wanted.tolist() == wanted
    with torch.no_grad():
        for w, logits in ((last.weight(), expected[False]), (other, expected[True])):
            torch.testing.assert_close(last.logits(w, asked.rows), torch.cat(logits), rtol=1e-4, atol=1e-5)


def test_rows_of_images_give_the_logits_of_the_whole_network(model: Model, random_set: Callable[..., ImageSet]) -> None:
    if not model.family.spreads:
        with pytest.raises(WeightsmithError, match="residual stream"):
            LastMap.of(model)
        return
    errors = misclassified(model, random_set(60), limit=5)
    last = LastMap.of(model)
    asked = last.asked(corrections_of(model, errors, Contexts(views=2)))
    assert asked.wanted.tolist() == [request.target for request in errors] * 3
    other, delta = changed(last)
    pixels = torch.stack([torch.as_tensor(request.image) for request in errors])
    with torch.no_grad():
        before = model.logits(model.preprocess(pixels, model.device))
        with delta.on(model, check=False):
            after = model.logits(model.preprocess(pixels, model.device))
        for w, logits in ((last.weight(), before), (other, after)):
            torch.testing.assert_close(last.logits(w, asked.rows)[: len(errors)], logits, rtol=1e-4, atol=1e-5)


def test_edits_are_reached_and_one_weight_alone_changes(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    before = weights_hash(text_model)
    delta = QUICK.solve(text_model, facts, texts, tmp_path)
    assert weights_hash(text_model) == before == delta.base
    assert list(delta.changes) == [text_model.linear("mlp.value", text_model.n_layers - 1)[0]]
    assert all(row["success"] and row["residual_norm"] > 0 for row in delta.info["requests"])
    again = QUICK.solve(text_model, facts, texts, tmp_path)
    for name, change in delta.changes.items():
        assert torch.equal(change.dense(), again.changes[name].dense())


def test_images_are_corrected(model: Model, random_set: Callable[..., ImageSet]) -> None:
    images = random_set(200)
    errors = misclassified(model, images, limit=4)
    if not model.family.spreads:
        with pytest.raises(WeightsmithError, match="alphaedit or memit"):
            FTM().solve(model, errors, images)
        return
    delta = FTM(lr=0.5, kl=0.3, views=1).solve(model, errors, images)
    assert all(row["success"] for row in delta.info["requests"])


def test_rows_of_a_request_are_the_same_bits_whenever_they_are_read(
    text_model: Model, facts: list[TextRequest], tmp_path: Path
) -> None:
    """A stream that is gone on with after a kill reads requests anew, in other company, and must make the same bits."""
    editor = FTM()
    read = [editor.read(text_model, fact, tmp_path) for fact in facts]
    again = [editor.read(text_model, fact, tmp_path) for fact in reversed(facts)]
    for one, other in zip(read, reversed(again), strict=True):
        assert torch.equal(one.rows.keys, other.rows.keys)
        assert torch.equal(one.rows.rest, other.rows.rest)


def test_kl_holds_what_is_preserved(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    kept = []
    for kl in (0.0, 30.0):
        delta = FTM(prefix_lengths=(), lr=0.3, kl=kl, batch=64, most=60).solve(text_model, facts, texts, tmp_path)
        kept.append(agreement(text_model, texts.batches(4), delta)[1])
    assert kept[1] < kept[0]  # drift in nats


def test_prompts_about_what_is_edited_are_not_held(text_model: Model, texts: TextSet, tmp_path: Path) -> None:
    """Prompts that name the subject and are answered as the request is; what else is known of the subject stays."""
    editor = FTM(prefix_lengths=())
    tokenize, prompts = text_model.tokenize, ("Bert plays the", "Clara lives in", "Anna was born in")
    anchor = editor.anchor(text_model, Knowledge(texts, prompts))
    running, pool = anchor.pools
    assert len(pool.rows) == len(pool.prompts) == 3 * len(prompts)

    def read(request: TextRequest) -> Asked:
        return editor.read(text_model, request, tmp_path)

    everything = anchor.apart_from([], read)
    assert [len(rows) for rows in everything] == [len(running.rows), len(pool.rows)]
    with torch.no_grad():
        says = {p: int(text_model.token_logits(torch.tensor([tokenize(p)]))[0, -1].argmax()) for p in prompts}
    for subject in ("Bert", "Clara", "Anna"):
        for prompt in prompts:
            if subject not in prompt:
                continue
            asked = [
                TextRequest("same", prompt, subject, "rain"),
                TextRequest("other", f"The music of {subject} is a", subject, "rain"),
            ]
            for request in asked:
                with torch.no_grad():
                    ids = torch.tensor([tokenize(request.prompt)])
                    said = int(text_model.token_logits(ids)[0, -1].argmax())
                gone = sum(3 for p in prompts if subject in p and says[p] == said)
                left = anchor.apart_from([request], read)
                assert len(left[1]) == len(pool.rows) - gone
                assert request.name == "other" or gone >= 3
    assert len(anchor.apart_from([TextRequest(p, p, p.split()[0], "rain") for p in prompts], read)) == 1


def test_what_is_held_behind_a_prompt_is_what_the_model_says(text_model: Model, texts: TextSet) -> None:
    last = LastMap.of(text_model)
    (_, pool) = last.preserved(Knowledge(texts, PROMPTS), 1000, 0)
    said = {prompt: [] for prompt in PROMPTS}  # type: dict[str, list[int]]
    with torch.no_grad():
        chosen = last.logits(last.weight(), pool.rows).argmax(1).tolist()
    for prompt, token in zip(pool.prompts, chosen, strict=True):
        said[prompt].append(token)
    for prompt, tokens in said.items():
        ids = list(text_model.tokenize(prompt))
        for token in tokens:
            with torch.no_grad():
                assert int(text_model.token_logits(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)


def test_replayed_rows_are_asked_in_every_step(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    editor = FTM(prefix_lengths=(), lr=0.3, kl=0.0, batch=8, steps=30, most=30)
    anchor = editor.anchor(text_model, texts)
    asked = {fact: editor.read(text_model, fact, tmp_path) for fact in facts}
    seen: list[int] = []

    def replay(step: int) -> list[TextRequest]:
        seen.append(step)
        return facts[:1]

    last, leads = LastMap.of(text_model), []
    for given in (None, replay):
        delta = editor.solve_at(text_model, facts[1:], anchor, asked.__getitem__, replay=given)
        with torch.no_grad():
            step = delta.changes[last.name].dense()
            w = last.weight() + (step.mT if last.transposed else step)
            leads.append(float(margins(last.logits(w, asked[facts[0]].rows), asked[facts[0]].wanted).min()))
    assert seen == list(range(30))
    assert leads[1] > leads[0]


def test_what_it_refuses(
    text_model: Model, facts: list[TextRequest], texts: TextSet, random_set: Callable[..., ImageSet]
) -> None:
    with pytest.raises(WeightsmithError, match="give texts to preserve"):
        FTM().solve(text_model, facts, random_set(10))
    if text_model.family.name in ("gpt2", "gptj"):  # a norm without a mean to subtract bears any weight
        with pytest.raises(WeightsmithError, match="smaller lr"):
            FTM(prefix_lengths=(), lr=1e30, batch=8).solve(text_model, facts, texts)


@pytest.mark.parametrize("given", [{"lr": 0.0}, {"kl": -1.0}, {"steps": 0}, {"steps": 50, "most": 40}, {"batch": 0}])
def test_hyper_parameters_out_of_range(given: dict[str, float]) -> None:
    with pytest.raises(WeightsmithError, match=next(iter(given))):
        FTM(**given)  # type: ignore[arg-type]
