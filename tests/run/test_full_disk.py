"""A disk that is full at one write after another: one sentence, nothing half-written, and the same files in the end."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.run.conftest import Command, assert_refused
from weightsmith.models import save
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.folder import FolderOptions


class Disk:
    """A disk below a folder that has room for so many writes; from then on each that needs room fails.

    What counts are files that are opened for writing, folders that are made, and what is brought to the disk (fsync), which
    is where the files of other libraries are noticed: they are written whole before.
    """

    def __init__(self, place: Path, room: int) -> None:
        self.place, self.room, self.writes = place, room, 0

    def take(self, path: object) -> None:
        if not str(path).startswith(str(self.place)):
            return
        self.writes += 1
        if self.writes > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def room_for(place: Path, writes: int) -> Iterator[Disk]:
    disk, opened, fsync, mkdir = Disk(place, writes), io.open, os.fsync, os.mkdir

    def opens(file: object, mode: str = "r", *rest: object, **more: object) -> object:
        if set(mode) & set("wax+"):
            disk.take(file)
        return opened(file, mode, *rest, **more)  # type: ignore[call-overload]

    def syncs(number: int) -> None:
        disk.take(os.readlink(f"/proc/self/fd/{number}") if Path("/proc/self/fd").exists() else place)
        fsync(number)

    def makes(path: object, *rest: object, **more: object) -> None:
        disk.take(path)
        mkdir(path, *rest, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(io, "open", opens)
        patched.setattr(builtins, "open", opens)
        patched.setattr(os, "fsync", syncs)
        patched.setattr(os, "mkdir", makes)
        yield disk


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_times(found: dict[str, bytes], *others: dict[str, bytes]) -> dict[str, bytes]:
    """What is the same in all of them."""
    return {name: content for name, content in found.items() if all(other.get(name) == content for other in others)}


def check_told(outcome, place: Path) -> None:
    assert_refused(outcome, ["full", "free some"])
    assert str(place) in outcome.err, outcome.err
    left = [path for path in place.rglob("*") if path.name.endswith((".tmp", ".old", ".partial"))]
    assert not left


def driven_to_its_end(weightsmith: Command, words: list[object], place: Path) -> int:
    """Call a command on a disk with room for more and more writes; how often it was full."""
    for call in range(50):
        with room_for(place, call * (call + 1) // 2):
            outcome = weightsmith(*words)
        if outcome.status == 0:
            return call
        check_told(outcome, place)
    raise AssertionError("it does not come to its end")


def test_a_stream_of_edits_goes_on_after_the_disk_was_full(weightsmith: Command, talker: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    spoken = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    spoken += ["--hparams", talker / "memit.yaml"]
    words: list[object] = ["edit", *spoken, "--edit-method", "memit", "--max-edits", "2", "--batch-size", "1"]
    words += [
        "--runs-dir",
        place / "runs",
        "--run-name",
        "x",
        "--cache-dir",
        place / "cache",
        "--device",
        "cpu",
        "--resume",
    ]
    whole = []
    for _ in range(2):
        place.mkdir()
        assert weightsmith(*words).status == 0
        whole.append(contents(place))
        shutil.rmtree(place)
    expected = without_times(*whole)
    assert any(name.endswith((".csv", ".safetensors")) for name in expected)
    place.mkdir()
    assert driven_to_its_end(weightsmith, words, place) > 4
    found = contents(place)
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) == set(whole[0])


def test_a_merge_finds_the_disk_full_at_every_write(weightsmith: Command, tiny_model, tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("one", 1)):
        save(tiny_model("vit", seed=seed), tmp_path / name)
    words = ["merge", "--base", tmp_path / "base", "--models", tmp_path / "one", "--out", tmp_path / "disk" / "out"]
    place = tmp_path / "disk"
    place.mkdir()
    for room in range(100):
        with room_for(place, room) as disk:
            outcome = weightsmith(*words)
        if outcome.status == 0:
            break
        check_told(outcome, place)
        assert not list(place.iterdir())
    assert disk.writes == room > 5
    whole = contents(place)
    shutil.rmtree(place)
    assert weightsmith(*words).status == 0
    assert without_times(contents(place), whole).keys() >= {"out/model.safetensors", "out/README.md", "out/config.json"}


def test_a_log_that_finds_no_room_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full is a disk that is full."""
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    folder = RunFolder.named(FolderOptions(runs_dir=str(tmp_path)), "x")
    folder.path.mkdir()
    (folder.path / "log.txt").symlink_to("/dev/full")
    with folder.logged():
        logging.getLogger("weightsmith.run").warning("a line")
    assert "Traceback" not in capsys.readouterr().err
