"""The journal: what is written is read, what a crash cut off is dropped, and nothing damaged is taken for whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from weightsmith.delta import Delta, Dense, LowRank
from weightsmith.errors import WeightsmithError
from weightsmith.request import ImageRequest, Probe, Request, TextRequest
from weightsmith.stream import Batch, Edit, Journal
from weightsmith.stream.guards import GuardedKeys


def text(name: str) -> TextRequest:
    return TextRequest(
        name, "Anna plays the", "Anna", "flute", "oboe", ("Anna has an",), (Probe("Dora plays", "oboe"),)
    )


def image(name: str) -> ImageRequest:
    return ImageRequest(name, torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8), 2, 1, "source")


def batch(number: int, first: int, *requests: Request) -> Batch:
    generator = torch.Generator().manual_seed(number)
    change = LowRank(torch.randn(3, 2, generator=generator).double(), torch.randn(2, 4, generator=generator).double())
    edits = tuple(Edit(first + i, request, True, 0.5 + i) for i, request in enumerate(requests))
    keys = GuardedKeys(
        torch.randn(4, len(edits), generator=generator).double(),
        torch.ones(len(edits)).double(),
        tuple(edit.number for edit in edits),
    )
    return Batch(number, edits, Delta({"w": change, "b": Dense(torch.ones(3))}), {"2": keys}, {"update_norm": 1.5})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal.create(tmp_path / "edits", {"base": "abc", "method": "alphaedit"})
    made.append([batch(1, 1, text("a"), text("b"))])
    made.append([batch(2, 3, image("c"))])
    return made


def same(a: Batch, b: Batch) -> bool:
    if (a.number, a.info, len(a.edits)) != (b.number, b.info, len(b.edits)):
        return False
    edits = all(
        (x.number, x.success, x.margin, x.replaces, x.request.name)
        == (y.number, y.success, y.margin, y.replaces, y.request.name)
        for x, y in zip(a.edits, b.edits, strict=True)
    )
    mine, theirs = a.delta.tensors(), b.delta.tensors()
    changes = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return (
        edits
        and changes
        and torch.equal(a.keys["2"].keys, b.keys["2"].keys)
        and a.keys["2"].owners == b.keys["2"].owners
    )


def test_what_is_written_is_read(journal: Journal) -> None:
    again = Journal.open(journal.folder)
    assert again.settings == {"base": "abc", "method": "alphaedit"}
    assert len(again.batches) == 2
    assert all(same(a, b) for a, b in zip(journal.batches, again.batches, strict=True))
    assert again.batches[0].edits[1].request == text("b")
    asked, known = again.batches[1].edits[0].request, journal.batches[1].edits[0].request
    assert isinstance(asked, ImageRequest)
    assert isinstance(known, ImageRequest)
    assert torch.equal(asked.image, known.image)
    assert again.next_edit() == 4


def test_undone_and_solved_again(journal: Journal) -> None:
    journal.undo([2])
    assert [b.number for b in Journal.open(journal.folder).batches] == [1]
    journal.append([batch(3, 4, text("d"))])
    journal.append([batch(1, 2, text("b")), batch(3, 4, text("d"))], "remove", {"removed": 1})
    again = Journal.open(journal.folder)
    assert [edit.number for _, edit in again.edits()] == [2, 4]
    assert again.next_edit() == 5
    journal.append([Batch(3, (), Delta({}))], "remove")
    assert [b.number for b in Journal.open(journal.folder).batches] == [1]
    with pytest.raises(WeightsmithError, match="batch 2 is not in force"):
        journal.undo([2])


def test_an_operation_that_was_cut_off_anywhere_is_dropped(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """Cut behind every byte of the last operation, which has two lines: the one before it holds, whole."""
    path = journal.folder / "journal.jsonl"
    before = path.read_bytes()
    journal.append([batch(3, 4, text("d"), text("e"))])
    whole = path.read_bytes()
    for end in range(len(before), len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        again = Journal.open(journal.folder)
        assert [b.number for b in again.batches] == [1, 2], end
        assert path.read_bytes() == before
        assert ("cut off" in caplog.text) == (end > len(before))
    path.write_bytes(whole)
    assert [b.number for b in Journal.open(journal.folder).batches] == [1, 2, 3]


def test_damage_before_the_end_is_named(journal: Journal) -> None:
    path = journal.folder / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("oboe", "drum"), *lines[2:]]))
    with pytest.raises(WeightsmithError, match=r"line 2 of .* is damaged"):
        Journal.open(journal.folder)


def test_a_batch_that_is_missing_or_another_is_named(journal: Journal) -> None:
    files = sorted(journal.folder.glob("batch-*.safetensors"))
    kept = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(WeightsmithError, match="is not the file that was journalled"):
        Journal.open(journal.folder)
    files[0].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(WeightsmithError, match="damaged"):
        Journal.open(journal.folder)
    files[0].unlink()
    with pytest.raises(WeightsmithError, match="does not exist"):
        Journal.open(journal.folder)


def test_what_is_no_journal_is_refused(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(WeightsmithError, match="holds no journal"):
        Journal.open(tmp_path / "nowhere")
    with pytest.raises(WeightsmithError, match="has a journal already"):
        Journal.create(journal.folder, {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "journal.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(WeightsmithError, match="is no weightsmith-journal-1 file"):
        Journal.open(other)


def test_an_edit_is_found_by_number_or_name(journal: Journal) -> None:
    assert journal.find("3")[1].request.name == "c"
    assert journal.find("b")[1].number == 2
    journal.append([batch(3, 4, text("b"))])
    with pytest.raises(WeightsmithError, match=r"names several edits: give one of the numbers \[2, 4\]"):
        journal.find("b")
    with pytest.raises(WeightsmithError, match="edit 9 is not in force: edits 1 to 4"):
        journal.find("9")


def test_a_write_that_fails_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    path = journal.folder / "journal.jsonl"
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("weightsmith.stream.journal.os.fsync", full)
        with pytest.raises(WeightsmithError, match="full"):
            journal.undo([2])
    assert path.read_bytes() == before
    assert [b.number for b in journal.batches] == [1, 2]
