"""Streams of edits: what holds, what can be taken back bit by bit, and what is as if it had never been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from torch import Tensor

from tests.stream.conftest import EDITOR
from weightsmith.data.images import ImageSet
from weightsmith.data.texts import TextSet
from weightsmith.delta import weights_hash
from weightsmith.edit import (
    EMMET,
    FTM,
    MEMIT,
    ROME,
    AlphaEdit,
    ClosedForm,
    Editor,
    FineTune,
    HeadEdit,
    Patcher,
    neurons,
)
from weightsmith.edit.reading import Contexts, corrections_of
from weightsmith.errors import WeightsmithError
from weightsmith.measure import misclassified
from weightsmith.models import Model
from weightsmith.request import Request, TextRequest
from weightsmith.stream import Journal, ReplayOptions, Stream, Trust, TrustOptions, settings_of

Kind = Literal["none", "keys", "requests", "both"]
Batches = list[list[TextRequest]]


def holding(model: Model, requests: list[TextRequest]) -> list[bool]:
    return [bool(row["success"]) for row in corrections_of(model, requests, Contexts(lookup="last")).answers(model)]


EDITORS: dict[str, Editor] = {
    "alphaedit": EDITOR,
    "memit": MEMIT(prefix_lengths=()),
    "emmet": EMMET(prefix_lengths=()),
    "rome": ROME(prefix_lengths=()),
    "head": HeadEdit(closed_form=True, closed_weight=0.1),
    "finetune": FineTune(lr=3e-3, steps=200),
    "ftm": FTM(prefix_lengths=(), steps=10, batch=64, lr=0.5, kl=0.3),
}

KINDS = [
    (name, kind)
    for name, editor in EDITORS.items()
    for kind in ("none", "keys", "requests", "both")
    if isinstance(editor, ClosedForm) or kind in ("none", "requests")
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_taking_back_gives_the_bits_that_were_there(
    name: str, kind: str, gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path
) -> None:
    editor = EDITORS[name]
    stream = Stream(gpt2, editor, texts, replay=ReplayOptions(kind=kind), cache_dir=tmp_path)  # type: ignore[arg-type]
    hashes = [weights_hash(gpt2)]
    for batch in facts:
        made = stream.add(batch)
        assert made is not None
        if not isinstance(editor, ROME):  # one request after another, and each may unsettle the one before
            assert all(edit.success for edit in made.edits)
            assert all(holding(gpt2, batch))
        hashes.append(weights_hash(gpt2))
        assert list(made.info["residuals"]) == [request.name for request in batch]
        assert len(made.info["statistics"]) == 64
    assert len({batch.info["statistics"] for batch in stream.batches}) == 1
    assert len(set(hashes)) == 4
    assert [edit.number for edit in stream.edits()] == [1, 2, 3, 4, 5, 6]
    stream.undo()
    assert weights_hash(gpt2) == hashes[2]
    assert stream.add(facts[2]) is not None
    assert weights_hash(gpt2) == hashes[3]  # the same again, and nothing of the first time is left
    stream.undo(2)
    assert weights_hash(gpt2) == hashes[1]
    stream.close()
    assert weights_hash(gpt2) == hashes[0]


# Which edit is taken out, and what is replayed, have nothing to do with one another: each of both is there for each editor.
@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        *(
            ("alphaedit", kind, number)
            for kind, number in zip(("none", "keys", "requests", "both"), (1, 4, 6, 2), strict=True)
        ),
        *(("alphaedit", "both", number) for number in (1, 6)),
        *(
            ("ftm", kind, number)
            for kind, number in zip(("none", "none", "requests", "requests"), (2, 6, 1, 4), strict=True)
        ),
    ],
)
def test_removing_an_edit_is_never_having_made_it(
    name: str, kind: str, number: int, gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path
) -> None:
    replay, editor = ReplayOptions(kind=kind), EDITORS[name]  # type: ignore[arg-type]
    start = weights_hash(gpt2)
    with_all = Stream(gpt2, editor, texts, replay=replay, cache_dir=tmp_path)
    for batch in facts:
        with_all.add(batch)
    with_all.remove(number)
    removed = weights_hash(gpt2)
    left = [edit.request.name for edit in with_all.edits()]
    with_all.close()
    assert weights_hash(gpt2) == start
    without = Stream(gpt2, editor, texts, replay=replay, cache_dir=tmp_path)
    gone = [request for batch in facts for request in batch][number - 1]
    for batch in facts:
        without.add([request for request in batch if request is not gone])
    assert left == [edit.request.name for edit in without.edits()]
    assert gone.name not in left
    assert weights_hash(gpt2) == removed  # same numbers in the same order: the same bits


@pytest.mark.parametrize(("name", "kind"), [("alphaedit", "both"), ("ftm", "requests")])
def test_a_stream_goes_on_where_its_journal_ends(
    name: str, kind: str, gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path
) -> None:
    replay, editor = ReplayOptions(kind=kind), EDITORS[name]  # type: ignore[arg-type]
    journal = Journal.create(tmp_path / "edits", settings_of(gpt2, editor, replay))
    whole = Stream(gpt2, editor, texts, journal=journal, replay=replay, cache_dir=tmp_path)
    hashes = []
    for batch in facts:
        whole.add(batch)
        hashes.append(weights_hash(gpt2))
    whole.close()
    for first in (1, 2):
        folder = tmp_path / f"edits-{first}"
        journal = Journal.create(folder, settings_of(gpt2, editor, replay))
        begun = Stream(gpt2, editor, texts, journal=journal, replay=replay, cache_dir=tmp_path)
        for batch in facts[:first]:
            begun.add(batch)
        begun.close()
        again = Stream(gpt2, editor, texts, journal=Journal.open(folder), replay=replay, cache_dir=tmp_path)
        assert weights_hash(gpt2) == hashes[first - 1]
        for batch in facts[first:]:
            again.add(batch)
        assert weights_hash(gpt2) == hashes[-1]
        again.undo(len(again.batches))
        assert Journal.open(folder).batches == []
        again.close()


def test_guarded_keys_move_less(gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path) -> None:
    """What later batches do to the values of the first batch's keys, with and without guarding them."""
    moved = {}
    name, transposed, _ = gpt2.linear("mlp.value", gpt2.n_layers - 1)
    for kind in ("none", "keys"):
        stream = Stream(gpt2, EDITOR, texts, replay=ReplayOptions(kind=kind), cache_dir=tmp_path)  # type: ignore[arg-type]
        stream.add(facts[0])
        with_first = gpt2.module.get_parameter(name).detach().double().clone()
        measured = Stream(gpt2, EDITOR, texts, replay=ReplayOptions(kind="keys"), cache_dir=tmp_path)._solves.keys(
            dict(enumerate(facts[0]))
        )
        (keys,) = measured.values()
        for batch in facts[1:]:
            stream.add(batch)
        change = gpt2.module.get_parameter(name).detach().double() - with_first
        moved[kind] = float(((change.mT if transposed else change) @ keys.keys).norm())
        stream.close()
    assert moved["keys"] < 0.7 * moved["none"]


def test_importance_is_journalled_and_kept(gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path) -> None:
    replay = ReplayOptions(kind="requests", strategy="priority", rate=0.5)
    journal = Journal.create(tmp_path / "edits", settings_of(gpt2, EDITOR, replay))
    with Stream(gpt2, EDITOR, texts, journal=journal, replay=replay, cache_dir=tmp_path) as stream:
        with pytest.raises(WeightsmithError, match="positive number"):
            stream.add(facts[0], {"b": 0.0})
        stream.add(facts[0], {"b": 9.0, "nobody": 2.0})
    again = Stream(gpt2, EDITOR, texts, journal=Journal.open(tmp_path / "edits"), replay=replay, cache_dir=tmp_path)
    made = again.add(facts[1])
    assert made is not None
    assert list(made.info["replayed"]) == ["b"]
    assert again.batches[0].info["importance"] == {"b": 9.0}
    again.remove(3)
    assert again.batches[0].info["importance"] == {"b": 9.0}


def test_a_later_edit_overrules_an_earlier_one_and_says_so(
    gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(gpt2, EDITOR, texts, cache_dir=tmp_path)
    stream.add(facts[0])
    again = stream.add([replace(facts[0][0], name="again", target="joy")])
    assert again is not None
    assert again.edits[0].replaces == 1
    assert "again replaces edit 1, a" in caplog.text
    assert [edit.number for edit in stream.edits()] == [2, 3]
    assert holding(gpt2, [again.edits[0].request]) == [True]  # type: ignore[list-item]
    assert holding(gpt2, [facts[0][0]]) == [False]
    stream.undo()
    assert holding(gpt2, [facts[0][0]]) == [True]


def test_the_same_edit_twice_is_left_out_while_it_holds(
    gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(gpt2, EDITOR, texts, cache_dir=tmp_path)
    stream.add(facts[0])
    before = weights_hash(gpt2)
    assert stream.add([replace(facts[0][0], name="twin")]) is None
    assert weights_hash(gpt2) == before
    assert "twin is edit 1 already, which holds: left out" in caplog.text


def test_what_does_not_fit_is_refused(gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path) -> None:
    replay = ReplayOptions()
    journal = Journal.create(tmp_path / "edits", settings_of(gpt2, EDITOR, replay))
    stream = Stream(gpt2, EDITOR, texts, journal=journal, replay=replay, cache_dir=tmp_path)
    stream.add(facts[0])
    with pytest.raises(WeightsmithError, match="of other weights"):
        Stream(gpt2, EDITOR, texts, journal=Journal.open(tmp_path / "edits"), replay=replay)
    stream.close()
    with pytest.raises(WeightsmithError, match="with other options"):
        Stream(gpt2, AlphaEdit(), texts, journal=Journal.open(tmp_path / "edits"), replay=replay)
    with pytest.raises(WeightsmithError, match="with other replay"):
        Stream(gpt2, EDITOR, texts, journal=Journal.open(tmp_path / "edits"), replay=ReplayOptions(kind="none"))
    with pytest.raises(WeightsmithError, match="2 batches cannot be taken back: 0 are in force"):
        stream.undo(2)
    with pytest.raises(WeightsmithError, match="edit 7 is not in force"):
        stream.remove(7)


def test_an_editor_that_fails_leaves_everything_as_it_was(
    gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path
) -> None:
    journal = Journal.create(tmp_path / "edits", settings_of(gpt2, EDITOR, ReplayOptions()))
    stream = Stream(gpt2, EDITOR, texts, journal=journal, cache_dir=tmp_path)
    stream.add(facts[0])
    before = weights_hash(gpt2)
    with pytest.raises(WeightsmithError, match="contradict"):
        stream.add([facts[1][0], replace(facts[1][0], target="oboe")])
    assert weights_hash(gpt2) == before
    assert len(Journal.open(tmp_path / "edits").batches) == 1


@pytest.mark.parametrize(
    ("editor", "kind"),
    [(AlphaEdit(), "both"), (MEMIT(), "both"), (Patcher(), "requests"), (FTM(lr=0.5, kl=0.3), "requests")],
    ids=["alphaedit", "memit", "patcher", "ftm"],
)
def test_images(
    editor: Editor, kind: Kind, tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    model, images = tiny_model("vit"), random_set(200)
    errors = misclassified(model, images, limit=6)
    journal = Journal.create(tmp_path / "edits", settings_of(model, editor, ReplayOptions(kind=kind)))
    stream = Stream(model, editor, images, journal=journal, replay=ReplayOptions(kind=kind), cache_dir=tmp_path)
    start = weights_hash(model)
    for first in (0, 3):
        asked: list[Request] = list(errors[first : first + 3])
        made = stream.add(asked)
        assert made is not None
        assert all(edit.success for edit in made.edits)
    after = weights_hash(model)
    stream.close()
    assert weights_hash(model) == start
    Stream(model, editor, images, journal=Journal.open(tmp_path / "edits"), replay=ReplayOptions(kind=kind))
    assert weights_hash(model) == after


def test_the_patcher_keeps_the_neurons_of_earlier_errors(
    tiny_model: Callable[..., Model], random_set: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory is quiet on every preserved image: without what it does for its error it would be the first to be taken."""
    taken: list[set[int]] = []
    fold = neurons._Memory._fold

    def noted(memory: neurons._Memory, which: Tensor) -> None:
        taken.append(set(which.tolist()))
        fold(memory, which)

    monkeypatch.setattr(neurons._Memory, "_fold", noted)
    model, images = tiny_model("vit"), random_set(200)
    errors = misclassified(model, images, limit=12)
    overlaps = {}
    for kind in ("none", None):
        taken.clear()
        with Stream(model, Patcher(budget=0.0), images, replay=ReplayOptions(kind=kind)) as stream:
            for first in range(0, 12, 2):
                assert stream.add(errors[first : first + 2]) is not None
            answers = corrections_of(model, errors, Contexts()).answers(model)
        overlaps[kind] = len(set.union(*taken)) < sum(len(each) for each in taken)
        assert kind == "none" or all(answer["success"] for answer in answers)
    assert overlaps == {"none": True, None: False}


@pytest.mark.parametrize("action", ["rollback", "scale", "warn"])
def test_a_batch_that_is_not_trusted(
    action: str, gpt2: Model, texts: TextSet, facts: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = TrustOptions(threshold=1.0, action=action, weights=(0, 1, 0, 0, 0))  # type: ignore[arg-type]
    trust = Trust(options, texts)
    stream = Stream(gpt2, FineTune(lr=3e-2, steps=50), texts, trust=trust, cache_dir=tmp_path)
    before = weights_hash(gpt2)
    made = stream.add(facts[0])
    if action == "rollback":
        assert made is None
        assert weights_hash(gpt2) == before
        assert "taken back" in caplog.text
    elif action == "warn":
        assert made is not None
        assert made.info["trust"]["score"] < 1
        assert "kept all the same" in caplog.text
    else:
        assert "scaled by" in caplog.text or "taken back" in caplog.text
        if made is not None:
            assert 0 < made.info["trust"]["factor"] < 1
            assert made.info["trust"]["score"] >= 1
