"""What a person does on the bench, without a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import load
from weightsmith.run.bench.session import Session
from weightsmith.stream import Journal

Bench = Callable[..., Session]
Errors = Callable[[Session, int], list[int]]


def wanted(session: Session, *indices: int) -> dict[int, int]:
    return {index: int(session.labels[index]) for index in indices}


def kept(session: Session, *indices: int) -> int:
    """Keep an edit of these images; the number of its first edit."""
    return session.keep(session.preview(wanted(session, *indices))).edits[0].number


def test_errors_are_those_of_the_validation_part(bench: Bench) -> None:
    session = bench()
    val, held_out = session.held.job.split.val, session.held.job.split.held_out
    seen = predict(session.model, val)
    names = {session.picture(i).name for i in session.listed("wrong")}
    assert names == {name for name, right in zip(seen.names, seen.right.tolist(), strict=True) if not right}
    assert names
    assert all(part.overlaps(held_out) == 0 for part in session.sets)
    assert session.listed("broken") == session.listed("corrected") == []
    assert len(session.listed("all")) == len(val)
    of_three = session.listed("all", label=3)
    assert {int(session.labels[i]) for i in of_three} == {3}
    sure = [session.picture(i).sure for i in session.listed("wrong")]
    assert sure == sorted(sure, reverse=True)


def test_a_preview_changes_nothing_and_is_what_is_kept(bench: Bench, first_errors: Errors, run_copy: Path) -> None:
    session = bench()
    (index,) = first_errors(session, 1)
    before, lines = weights_hash(session.model), (run_copy / "edits" / "journal.jsonl").read_bytes()
    seen = session.preview(wanted(session, index))
    assert weights_hash(session.model) == before
    assert (run_copy / "edits" / "journal.jsonl").read_bytes() == lines
    (made,) = seen.made
    assert made.before != made.wanted == made.after
    assert made.wanted_after > made.wanted_before

    assert seen.proposal.batch is not None
    val = session.held.job.split.val
    was = predict(session.model, val)
    with seen.proposal.batch.delta.on(session.model, check=False):
        then = predict(session.model, val)
    other = np.arange(len(val)) != index
    repaired = np.flatnonzero(other & ~was.right.numpy() & then.right.numpy())
    broken = np.flatnonzero(other & was.right.numpy() & ~then.right.numpy())
    assert [each.index for each in seen.repaired] == repaired.tolist()
    assert [each.index for each in seen.broken] == broken.tolist()
    assert (seen.wrong_before, seen.counted) == (int((other & ~was.right.numpy()).sum()), len(val) - 1)
    assert seen.wrong_after == seen.wrong_before - len(repaired) + len(broken)

    assert session.keep(seen).edits[0].request.name == session.picture(index).name
    assert session.picture(index).right
    assert [edit.number for _, edit in Journal.open(run_copy / "edits").edits()] == [1]


def test_undone_edits_leave_the_bits_before_them(bench: Bench, first_errors: Errors) -> None:
    session = bench()
    one, two, three = first_errors(session, 3)
    unedited = weights_hash(session.model)
    kept(session, one)
    behind_one = weights_hash(session.model)
    kept(session, two)
    assert session.undo(2) == []
    assert weights_hash(session.model) == behind_one
    number = kept(session, three)
    assert session.undo(1) == []  # the earlier one: the later is solved again without it
    assert [line.number for line in session.history()] == [number]
    without = weights_hash(session.model)
    assert session.undo(number) == []
    assert weights_hash(session.model) == unedited
    kept(session, three)
    assert weights_hash(session.model) == without
    with pytest.raises(WeightsmithError, match="edit 1 is not in force any more"):
        session.undo(1)


def test_the_state_is_there_again_after_a_restart(bench: Bench, first_errors: Errors) -> None:
    session = bench()
    for index in first_errors(session, 2):
        kept(session, index)
    worn, lines, summary = weights_hash(session.model), session.history(), session.summary()
    again = bench()
    assert weights_hash(again.model) == worn
    assert again.history() == lines
    assert again.summary() == summary
    assert (summary.edits, summary.wrong_now) == (2, len(again.listed("wrong")))
    assert summary.wrong_first > summary.wrong_now
    assert set(again.listed("corrected")) == {line.index for line in lines}


def test_images_edited_together_are_one_batch(bench: Bench, first_errors: Errors) -> None:
    session = bench()
    indices = first_errors(session, 3)
    batch = session.keep(session.preview(wanted(session, *indices)))
    assert [edit.number for edit in batch.edits] == [1, 2, 3]
    session.undo(2)
    assert [line.number for line in session.history()] == [3, 1]
    assert [line.batch for line in session.history()] == [1, 1]


def test_a_class_that_is_not_the_label_counts_as_right(bench: Bench, first_errors: Errors) -> None:
    """The person decides, not the data set; naming another class later replaces the edit, undoing that brings it back."""
    session = bench()
    (index,) = first_errors(session, 1)
    seen = session.picture(index)
    odd = next(c for c in range(10) if c not in (seen.now, seen.label))
    session.keep(session.preview({index: odd}))
    assert session.picture(index).right
    assert session.picture(index).wanted == odd
    session.keep(session.preview({index: seen.label}))
    assert [(line.number, line.overruled) for line in session.history()] == [(2, None), (1, 2)]
    assert session.picture(index).wanted == seen.label
    session.undo(2)
    assert (session.picture(index).wanted, session.picture(index).now) == (odd, odd)


def test_what_was_previewed_before_another_edit_is_refused(bench: Bench, first_errors: Errors, run_copy: Path) -> None:
    """Two people at one bench: the second to keep has looked at another model."""
    session = bench()
    one, two = first_errors(session, 2)
    mine, theirs = session.preview(wanted(session, one)), session.preview(wanted(session, two))
    session.keep(theirs)
    version = session.version
    with pytest.raises(WeightsmithError, match="another edit was kept or taken back since"):
        session.keep(mine)
    assert [line.index for line in session.history()] == [two]
    session.undo(1)
    with pytest.raises(WeightsmithError, match="solve it again"):
        session.keep(mine)  # the weights are those that it was solved on, the state of the stream is not
    assert session.version > version
    assert Journal.open(run_copy / "edits").edits() == []


def test_a_discarded_preview_is_journalled_and_changes_nothing(
    bench: Bench, first_errors: Errors, run_copy: Path
) -> None:
    session = bench()
    (index,) = first_errors(session, 1)
    before = weights_hash(session.model)
    session.discard(session.preview(wanted(session, index)))
    assert weights_hash(session.model) == before
    journal = Journal.open(run_copy / "edits")
    assert journal.edits() == []
    assert journal.dismissed == [session.picture(index).name]
    kept(session, index)  # it may be looked at again


def test_judges_are_never_edited(bench: Bench) -> None:
    session = bench(trust_heldout_samples=40)
    judges = [i for i in session.listed("all") if session.picture(i).locked]
    assert len(judges) == 40
    assert not set(judges) & set(session.listed("wrong"))
    with pytest.raises(WeightsmithError, match="cannot be edited: This image helps to judge"):
        session.preview({judges[0]: 0})
    many = bench(trust_heldout_samples=10_000)
    right = sum(many.picture(i).right for i in many.listed("all"))
    assert sum(bool(many.picture(i).locked) for i in many.listed("all")) == right // 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [({}, "no image is chosen"), ({0: 10}, "there is no class 10"), ({0: -1}, "there is no class -1")],
)
def test_what_cannot_be_asked(asked: dict[int, int], words: str, bench: Bench) -> None:
    with pytest.raises(WeightsmithError, match=words):
        bench().preview(asked)


def test_what_the_model_says_already_is_no_edit(bench: Bench, first_errors: Errors) -> None:
    session = bench()
    (index,) = first_errors(session, 1)
    with pytest.raises(WeightsmithError, match="already: name another class"):
        session.preview({index: session.picture(index).now})


def test_an_edit_that_may_not_stay_cannot_be_kept(bench: Bench, first_errors: Errors, run_copy: Path) -> None:
    session = bench(trust_threshold=1.0, trust_action="rollback")
    (index,) = first_errors(session, 1)
    seen = session.preview(wanted(session, index))
    assert "taken back" in seen.refused
    with pytest.raises(WeightsmithError, match="cannot be kept"):
        session.keep(seen)
    assert Journal.open(run_copy / "edits").blank


def test_another_editor(bench: Bench, first_errors: Errors) -> None:
    session = bench(edit_method="head")
    (index,) = first_errors(session, 1)
    seen = session.preview(wanted(session, index))
    assert seen.proposal.batch is not None
    assert all("classifier" in name for name in seen.proposal.batch.delta.changes)


def test_errors_of_a_new_site(bench: Bench, run_copy: Path, tmp_path: Path) -> None:
    """They come from its stream; its sealed rest is not shown, and the validation part watches."""
    val = bench().held.job.split.val
    inverted = 255 - val.pixels()[:, 0].numpy()
    names = {f"train_{kind}": values for kind, values in (("images", inverted), ("labels", val.labels[:, None]))}
    np.savez(tmp_path / "site.npz", **names)
    (run_copy / "edits" / "journal.jsonl").unlink()
    session = bench(edit_from=str(tmp_path / "site.npz"))
    stream, rest = session.held.job.new_site or (None, None)
    assert stream is not None
    assert rest is not None
    assert rest.sealed
    assert session.sets[0].overlaps(rest) == 0
    assert session.part == "new site"
    assert session.stream.editor.new_site  # type: ignore[attr-defined]
    index = session.listed("wrong")[0]
    seen = session.preview(wanted(session, index))
    assert seen.counted == len(session.sets[0]) + len(val) - 1
    session.keep(seen)
    assert session.picture(index).right
    watched = len(session.sets[0])
    assert session.picture(watched).locked


def test_the_corrected_classifier_is_saved_as_it_is_worn(bench: Bench, first_errors: Errors, run_copy: Path) -> None:
    session = bench()
    assert session.summary().saved  # nothing is to be saved yet
    kept(session, *first_errors(session, 2))
    assert not session.summary().saved
    session.save()
    assert session.summary().saved
    worn = session.model.module.state_dict()
    saved = load(run_copy / "bench" / "edited").module.state_dict()
    assert all(torch.equal(worn[name], saved[name]) for name in worn)
    assert bench().summary().saved
    session = bench()
    session.undo(2)
    session.undo(1)
    session.save()
    assert not (run_copy / "bench").exists()


def test_many_images_are_drawn_from(bench: Bench) -> None:
    session = bench(max_images=50)
    summary = session.summary()
    assert summary.looked == len(session.listed("all")) == 50
    assert summary.of_part == len(session.held.job.split.val) > 50
