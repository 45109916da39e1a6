"""`weightsmith edit --batch-size` and `weightsmith edits`: from the command line to the edited folder and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.run.conftest import undrawn
from weightsmith import cli
from weightsmith.delta import Delta, weights_hash
from weightsmith.files import read_csv
from weightsmith.models import load
from weightsmith.stream import Journal


def asked(knowing: Path, runs: Path, *more: object) -> list[object]:
    """A stream of three batches that are solved quickly: few steps, few generated sentences."""
    given = ["--max-edits", 6, "--batch-size", 2, "--runs-dir", runs, "--run-name", "stream", "--device", "cpu"]
    if "--edit-method" not in more:
        quick = runs.parent / f"{runs.name}.yaml"
        steps = {"steps": 12, "rounds": 2, "prefix_lengths": [[4, 1]]}
        quick.write_text(yaml.safe_dump({"method": "alphaedit", "layers": [2], **steps}))
        given += ["--edit-method", "alphaedit", "--hparams", quick]
    return ["edit", "--model", knowing, *given, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load(folder).module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(knowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream that nothing stopped; do not write into it."""
    runs = tmp_path_factory.mktemp("whole")
    with undrawn():
        cli.main([str(word) for word in asked(knowing, runs)])
    return runs / "stream"


def test_edits_are_journalled_listed_and_taken_back(weightsmith, knowing: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*asked(knowing, tmp_path))
    assert outcome.status == 0, outcome.err
    run = tmp_path / "stream"
    rows = list(read_csv(run / "stream.csv"))
    assert [row["edits"] for row in rows] == ["2", "2", "2"]
    assert len(list(read_csv(run / "edit_log.csv"))) == 6
    assert f"in layers {load(knowing).n_layers - 1}; update norm" in outcome.out
    base, edited = load(knowing), weights(run / "edited")
    with Delta.load(run / "delta.safetensors").on(base):
        worn = base.module.state_dict()
        assert all(torch.allclose(worn[name], edited[name], atol=1e-6) for name in edited)

    listed = weightsmith("edits", "list", run)
    assert listed.status == 0
    assert "6 edits in force" in listed.out
    told = json.loads(weightsmith("edits", "show", run, 3).out)
    assert told["edit"] == 3
    assert told["batch"] == 2
    assert told["request"]["prompt"]
    assert told["changes_of_the_batch"]

    undone = weightsmith("edits", "undo", run)
    assert undone.status == 0, undone.err
    assert "2 edits of 1 batches are taken back, 4 are in force" in undone.out
    assert len(list(read_csv(run / "edit_log.csv"))) == 4
    again = weightsmith(*asked(knowing, tmp_path, "--resume"))
    assert again.status == 0, again.err
    assert same(weights(run / "edited"), edited)  # the batch that was taken back is solved once more, to the same bits

    removed = weightsmith("edits", "remove", run, 1)
    assert removed.status == 0, removed.err
    assert next(edit.number for _, edit in Journal.open(run / "edits").edits()) == 2
    left = weights(run / "edited")
    assert not same(left, edited)
    assert weightsmith(*asked(knowing, tmp_path, "--resume")).status == 0
    assert same(weights(run / "edited"), left)  # what was removed is not asked again
    torch_file = next((run / "edited").glob("*.safetensors"))
    torch_file.write_bytes(b"damaged")
    assert weightsmith("edits", "replay", run).status == 0
    assert same(weights(run / "edited"), left)

    assert weightsmith("edits", "undo", run, "--all").status == 0
    assert not (run / "edited").exists()
    assert "0 edits in force" in weightsmith("edits", "list", run).out


def test_a_stream_that_was_stopped_goes_on(
    weightsmith, knowing: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind a batch, and gone on with behind the next, it ends with the bits of one that was not stopped."""
    append, run = Journal.append, tmp_path / "stopped" / "stream"

    def stop(self: Journal, *given: object, **more: object) -> None:
        append(self, *given, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    for batches, more in ((1, []), (2, ["--resume"])):
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", stop)
            assert weightsmith(*asked(knowing, tmp_path / "stopped", *more)).status == 130
        assert len(Journal.open(run / "edits").batches) == batches
        assert not (run / "edited").exists()
    outcome = weightsmith(*asked(knowing, tmp_path / "stopped", "--resume"))
    assert outcome.status == 0, outcome.err
    assert "2 of 3 batches are in the journal" in outcome.err
    assert same(weights(run / "edited"), weights(whole / "edited"))


def test_what_is_not_trusted_is_told(weightsmith, knowing: Path, tmp_path: Path) -> None:
    flags = ("--trust-enable", "--trust-threshold", 1.0, "--trust-weights", 0, 1, 0, 0, 0, "--edit-method", "finetune")
    outcome = weightsmith(*asked(knowing, tmp_path, *flags))
    assert "taken back" in outcome.err
    journal = Journal.open(tmp_path / "stream" / "edits")
    assert journal.dismissed
    if not journal.batches:
        assert outcome.status == 1
        assert "no edit is in force" in outcome.err


@pytest.mark.parametrize("flag", [("--replay", "requests"), ("--replay-rate", 2), ("--trust-enable",)])
def test_flags_of_streams_need_batches(flag: tuple[object, ...], weightsmith, knowing: Path, tmp_path: Path) -> None:
    given = ("--model", knowing, "--max-edits", 2, "--runs-dir", tmp_path, "--run-name", "one")
    outcome = weightsmith("edit", *given, *flag)
    assert outcome.status == 1
    assert f"{flag[0]} is for edits in one batch after another: give --batch-size" in outcome.err
    assert not (tmp_path / "one").exists()


def test_bad_journals(weightsmith, whole: Path, tmp_path: Path) -> None:
    outcome = weightsmith("edits", "list", tmp_path)
    assert outcome.status == 1
    assert "holds no journal of edits" in outcome.err
    run = Path(shutil.copytree(whole, tmp_path / "stream"))
    for which in ("99", "nothing"):
        outcome = weightsmith("edits", "remove", run, which)
        assert outcome.status == 1
        assert f"edit {which} is not in force: edits 1 to 6" in outcome.err
    outcome = weightsmith("edits", "undo", run, "--batches", 7)
    assert outcome.status == 1
    assert "7 batches cannot be taken back: 3 are in force" in outcome.err
    before = weights_hash(load(run / "edited"))
    lines = (run / "edits" / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "edits" / "journal.jsonl").write_text("".join([*lines[:2], "x\n", *lines[3:]]))
    outcome = weightsmith("edits", "replay", run)
    assert outcome.status == 1
    assert "line 3 of" in outcome.err
    assert weights_hash(load(run / "edited")) == before
