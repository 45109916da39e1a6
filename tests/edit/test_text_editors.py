"""Editors of language models, over every family: what they reach, what they read, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.edit.conftest import CORPUS, with_tokenizer
from weightsmith.data.texts import TextSet
from weightsmith.delta import LowRank, weights_hash
from weightsmith.edit import EMMET, MEMIT, ROME, AlphaEdit, Editor, FineTune, HeadEdit, LoRA
from weightsmith.edit.contexts import by_answer_token, generated_prefixes, readings
from weightsmith.edit.corrections import Goal
from weightsmith.edit.targets import TargetOptions
from weightsmith.edit.text_corrections import TextCorrections
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, record
from weightsmith.request import TextRequest
from weightsmith.site import Site

FEW: tuple[tuple[int, int], ...] = ()
EDITORS: dict[str, Editor] = {
    "rome": ROME(prefix_lengths=FEW),
    "memit": MEMIT(prefix_lengths=FEW),
    "emmet": EMMET(prefix_lengths=FEW),
    "alphaedit": AlphaEdit(prefix_lengths=FEW),
    "head": HeadEdit(closed_form=True, closed_weight=0.1),
    "finetune": FineTune(lr=3e-3, steps=200),
    "held finetune": FineTune(lr=3e-3, steps=300, kl=0.1, replay=0.1, preserved_batch=2),
    "lora": LoRA(lr=1e-2, steps=300, rank=4),
}


@pytest.fixture
def texts(text_model: Model) -> TextSet:
    return TextSet.of([CORPUS] * 4, text_model.tokenize, length=32)


@pytest.mark.parametrize("name", EDITORS)
def test_edits_are_reached_and_the_model_is_untouched(
    text_model: Model,
    facts: list[TextRequest],
    texts: TextSet,
    tmp_path: Path,
    name: str,
    hook_count: Callable[..., int],
) -> None:
    before, hooks = weights_hash(text_model), hook_count(text_model.module)
    asked = [parameter.requires_grad for parameter in text_model.module.parameters()]
    if name == "rome":
        facts = facts[:1]  # a later edit of so small a network unsettles an earlier one
    delta = EDITORS[name].solve(text_model, facts, texts, tmp_path)
    assert weights_hash(text_model) == before == delta.base
    assert hook_count(text_model.module) == hooks
    assert [parameter.requires_grad for parameter in text_model.module.parameters()] == asked
    rows = delta.info["requests"]
    assert [row["sample"] for row in rows] == [fact.name for fact in facts]
    assert [row["target"] for row in rows] == [fact.target for fact in facts]
    assert all(row["success"] for row in rows), rows
    with torch.no_grad(), delta.on(text_model):
        for fact in facts:
            ids, count = text_model.tokenize.continued(fact.prompt, fact.target)
            said = text_model.token_logits(torch.tensor([ids[:-1]]))[0, -count:].argmax(-1)
            assert tuple(said.tolist()) == ids[-count:]


def test_closed_forms_are_low_rank_in_the_layers_asked_for(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    delta = MEMIT(layers=(0, 1), prefix_lengths=(), rounds=1).solve(text_model, facts, texts, tmp_path)
    assert set(delta.changes) == {text_model.linear("mlp.value", layer)[0] for layer in (0, 1)}
    for change in delta.changes.values():
        assert isinstance(change, LowRank)
        assert min(change.left.shape[1], *change.shape) <= 3


def test_keys_and_values_are_those_of_single_passes(text_model: Model, facts: list[TextRequest]) -> None:
    """The batched, padded, truncated reading against one whole text at a time."""
    prefixes = ("Because of rain.", "I went to Rome again.")
    tokenize, layer = text_model.tokenize, 1
    for half in (True, False):
        read = readings(text_model, facts, prefixes)
        corrections = TextCorrections(read, read, half_bare=half)
        measured = corrections.measure(text_model, "mlp.value", layer, Goal("resid.out", layer))
        sites = [Site("mlp.key", layer), Site("resid.out", layer)]
        for row, fact in enumerate(facts):
            each: list[list[torch.Tensor]] = [[], []]
            for prefix in ("", *prefixes):
                text = f"{prefix} {fact.prompt}" if prefix else fact.prompt
                lookup = tokenize.subject(text, fact.subject)[1] - 1
                with torch.no_grad():
                    seen = record(text_model, torch.tensor([tokenize(text)]), sites)
                for found, site in zip(each, sites, strict=True):
                    found.append(seen[site][0, lookup])
            for values, mine in zip(each, (measured.keys, measured.present), strict=True):
                others = torch.stack(values[1:]).mean(0)
                expected = (values[0] + others) / 2 if half else torch.stack(values).mean(0)
                torch.testing.assert_close(mine[row], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(measured.bare[row], each[0][0], rtol=1e-4, atol=1e-5)


def test_wanted_values_are_those_of_each_request_alone(text_model: Model, facts: list[TextRequest]) -> None:
    read = by_answer_token(readings(text_model, facts, ("Because of rain.",), "last"))
    options = TargetOptions(margin=0.5, steps=60, lr=0.2, clamp=30.0)
    for kind in ("resid.out", "mlp.value", "attn.value"):
        goal = Goal(kind, 2)
        together = TextCorrections(read, read).wanted(text_model, goal, options)
        for row in (0, len(read) - 1):
            alone = TextCorrections(read[row : row + 1], read[row : row + 1]).wanted(text_model, goal, options)
            assert bool(alone.reached) == bool(together.reached[row])
            torch.testing.assert_close(alone.values[0], together.values[row], rtol=1e-2, atol=1e-2)
        assert together.reached.any() or kind == "attn.value", kind  # which its small norm clamps


def test_the_wanted_value_gives_the_answer_when_it_is_put_there(text_model: Model, facts: list[TextRequest]) -> None:
    read = readings(text_model, facts, ())
    found = TextCorrections(read, read).wanted(
        text_model, Goal("resid.out", 1), TargetOptions(margin=0.5, steps=60, lr=0.2)
    )
    for row, reading in enumerate(read):
        if not found.reached[row]:
            continue
        passage = reading.rewrites[0]
        with torch.no_grad():
            hidden = record(text_model, torch.tensor([passage.ids]), [Site("resid.out", 1)])[Site("resid.out", 1)]
            hidden[0, passage.lookup] = found.values[row]
            logits = text_model.read_out(text_model.run_blocks(2, hidden))[0, -passage.answer :]
        assert tuple(logits.argmax(-1).tolist()) == reading.target


def test_prefixes_are_the_same_for_the_same_model_and_seed(text_model: Model, tmp_path: Path) -> None:
    first = generated_prefixes(text_model, ((8, 3), (2, 1)), 7, tmp_path / "a")
    assert len(first) == 4
    assert all(text.endswith(".") for text in first)
    assert first == generated_prefixes(text_model, ((8, 3), (2, 1)), 7, tmp_path / "b")  # made again
    assert first == generated_prefixes(text_model, ((8, 3), (2, 1)), 7, tmp_path / "a")  # kept
    assert first != generated_prefixes(text_model, ((8, 3), (2, 1)), 8, tmp_path / "a")
    one, two = (tmp_path / "a" / "prefixes").iterdir()
    aside = one.rename(tmp_path / "aside")
    two.rename(one)
    aside.rename(two)
    assert first == generated_prefixes(text_model, ((8, 3), (2, 1)), 7, tmp_path / "a")
    for damaged in (tmp_path / "a" / "prefixes").iterdir():
        damaged.write_text("[1", encoding="utf-8")
    assert first == generated_prefixes(text_model, ((8, 3), (2, 1)), 7, tmp_path / "a")
    assert generated_prefixes(text_model, (), 7, tmp_path) == ()


def test_a_tokenizer_that_pads_left_changes_nothing(
    tiny_model: Callable[..., Model], facts: list[TextRequest], tmp_path: Path
) -> None:
    deltas = []
    for side in ("left", "right"):
        model = with_tokenizer(tiny_model("gpt2"), side)
        texts = TextSet.of([CORPUS] * 4, model.tokenize, length=32)
        deltas.append(MEMIT(prefix_lengths=FEW).solve(model, facts, texts, tmp_path / side))
    for name, change in deltas[0].changes.items():
        assert torch.equal(change.dense(), deltas[1].changes[name].dense())


def test_a_model_of_half_precision_is_edited(
    tiny_model: Callable[..., Model], facts: list[TextRequest], tmp_path: Path
) -> None:
    model = with_tokenizer(tiny_model("gpt2"))
    model.module.to(torch.bfloat16)
    texts = TextSet.of([CORPUS] * 4, model.tokenize, length=32)
    delta = MEMIT(prefix_lengths=FEW).solve(model, facts, texts, tmp_path)
    assert all(row["success"] for row in delta.info["requests"])


def test_requests_that_contradict_each_other_are_named(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    other = replace(facts[0], name="other", target="oboe")
    for editor in EDITORS.values():
        with pytest.raises(WeightsmithError, match=r"a and other contradict"):
            editor.solve(text_model, [*facts, other], texts, tmp_path)


def test_a_request_said_twice_counts_once_and_is_named(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = replace(facts[0], name="again")
    once = MEMIT(prefix_lengths=()).solve(text_model, facts, texts, tmp_path)
    twice = MEMIT(prefix_lengths=()).solve(text_model, [*facts, again], texts, tmp_path)
    assert twice.info["repeated"] == [("a", "again")]
    for name, change in once.changes.items():
        assert torch.equal(change.dense(), twice.changes[name].dense())


def test_what_cannot_be_edited_is_refused(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    with pytest.raises(WeightsmithError, match="layer 40"):
        MEMIT(layers=(40,)).solve(text_model, facts, texts, tmp_path)
    with pytest.raises(WeightsmithError, match="one layer"):
        ROME(layers=(0, 1)).solve(text_model, facts, texts, tmp_path)
    with pytest.raises(WeightsmithError, match="empty"):
        MEMIT().solve(text_model, [], texts, tmp_path)
    with pytest.raises(WeightsmithError, match="not in its prompt"):
        replace(facts[0], subject="Zoe")
    with pytest.raises(WeightsmithError, match="target of request a is empty"):
        replace(facts[0], target=" ")
    long = replace(facts[0], prompt="Anna " + "plays " * 80 + "the")
    with pytest.raises(WeightsmithError, match="shorten the prompt"):
        MEMIT(prefix_lengths=()).solve(text_model, [long], texts, tmp_path)
    for editor in (MEMIT(margin=-1.0), HeadEdit(closed_form=True, margin=-1.0), FineTune(margin=-1.0)):
        with pytest.raises(WeightsmithError, match="--margin must be a number from 0"):
            editor.solve(text_model, facts, texts, tmp_path)
    with pytest.raises(WeightsmithError, match="no layers"):
        MEMIT(component="classifier.value", layers=(1,)).solve(text_model, facts, texts, tmp_path)


def test_a_model_that_overflows_is_refused_and_left_whole(
    text_model: Model, facts: list[TextRequest], texts: TextSet, tmp_path: Path
) -> None:
    """NaN in the keys: the edit stops in one sentence, in the middle of its layers, and no weight has changed."""
    editor = MEMIT(layers=(0, 1), prefix_lengths=())
    editor.solve(text_model, facts, texts, tmp_path)  # statistics and prefixes are there
    before = weights_hash(text_model)
    name, _, _ = text_model.linear("mlp.value", 1)
    calls = 0
    original = TextCorrections.measure

    def broken(self: TextCorrections, *given: object) -> object:
        nonlocal calls
        calls += 1
        measured = original(self, *given)  # type: ignore[arg-type]
        return replace(measured, keys=measured.keys * np.nan) if calls == 2 else measured

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TextCorrections, "measure", broken)
        with pytest.raises(WeightsmithError, match="NaN"):
            editor.solve(text_model, facts, texts, tmp_path)
    assert calls == 2
    assert weights_hash(text_model) == before
    assert bool(torch.isfinite(text_model.module.get_parameter(name)).all())
