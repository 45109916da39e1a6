from __future__ import annotations

import csv
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from weightsmith import files
from weightsmith.errors import WeightsmithError
from weightsmith.files import (
    atomic_folder,
    atomic_path,
    read_csv,
    read_tensors,
    replacing,
    write_csv,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_and_fail(path: Path, error: type[BaseException]) -> None:
    path.write_text("new")
    raise error


def failing(number: int):
    """A stand-in for os.replace or os.fsync that fails as a disk does."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "made" / "also" / "file.txt"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent  # or the rename would copy
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("context", [atomic_path, replacing])
def test_an_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException], context: object
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), context(target) as temporary:  # type: ignore[operator]
        write_and_fail(temporary, error)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    monkeypatch.setattr(files.os, step, failing(number))
    with pytest.raises(WeightsmithError, match="is full: free some space") as told:
        write_text(target, "new")
    assert str(tmp_path) in str(told.value)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(files.os, "replace", failing(number))
    with pytest.raises(WeightsmithError, match=r"file\.txt cannot be written"):
        write_text(tmp_path / "file.txt", "new")
    assert names(tmp_path) == []


def test_a_failure_of_another_kind_is_not_disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "replace", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "file.txt", "new")
    assert names(tmp_path) == []


def test_a_full_disk_under_a_safetensors_file_is_told(tmp_path: Path) -> None:
    """The error is word for word what safetensors 0.8 raised on a tmpfs of 64 kB."""
    with pytest.raises(WeightsmithError, match="is full"), atomic_path(tmp_path / "delta.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "words",
    ["basic_ios::clear: iostream error", "PytorchStreamWriter failed writing file data/0: file write failed"],
)
def test_a_full_disk_under_a_checkpoint_is_told(tmp_path: Path, words: str) -> None:
    """The errors are word for word what torch.save raised on a tmpfs, at the end of a file and in its middle."""
    with pytest.raises(WeightsmithError, match="is full"), atomic_path(tmp_path / "checkpoint.pt"):
        raise RuntimeError(words)


def test_a_safetensors_file_has_the_rights_that_any_other_file_gets(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "delta.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("delta.safetensors", "plain")]
    assert modes[0] == modes[1]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    texts = {f"{digit}" * 50_000 for digit in range(8)}
    threads = [threading.Thread(target=write_text, args=(target, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in texts
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("2")
        assert names(target) == ["a"]
    assert names(target) == ["b"]  # replaced, not mixed
    assert names(target.parent) == ["model"]
    (target.parent / "plain").mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((target.parent / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    for existed in (False, True):
        if existed:
            target.mkdir()
            (target / "old").write_text("old")
        with pytest.raises(error), atomic_folder(target) as temporary:
            write_and_fail(temporary / "new", error)
        assert names(tmp_path) == (["model"] if existed else [])
    assert names(target) == ["old"]


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int) -> None:
    """Also when the old folder was moved aside already."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    calls, replace = [0], os.replace

    def fail_at_a_call(*paths: Path) -> None:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", fail_at_a_call)
    with pytest.raises(WeightsmithError, match="is full"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert calls[0] >= failing_call
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_a_folder_that_replaces_a_file_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file in the way")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["model"]


def test_csv_goes_through_unchanged(tmp_path: Path) -> None:
    rows = [{"name": "a,b", "text": 'quo"te\nline'}, {"name": "ä", "text": ""}]
    write_csv(tmp_path / "t.csv", rows)
    assert read_csv(tmp_path / "t.csv") == rows
    write_csv(tmp_path / "empty.csv", [], columns=["name", "text"])
    assert read_csv(tmp_path / "empty.csv") == []
    with (tmp_path / "empty.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["name", "text"]


def test_a_row_with_an_unknown_column_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more"):
        write_csv(tmp_path / "t.csv", [{"name": 1}, {"name": 2, "more": 3}])
    assert names(tmp_path) == []


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", {"z": 1, "a": "ü"})
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == '{\n  "z": 1,\n  "a": "ü"\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "t.json", {"z": object()})
    assert (tmp_path / "t.json").read_text(encoding="utf-8").startswith('{\n  "z"')


def test_the_cache_folder_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "mine"))
    assert files.default_cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTSMITH_CACHE", "~/there")
    assert files.default_cache_dir() == tmp_path / "there"
    monkeypatch.delenv("WEIGHTSMITH_CACHE")
    assert files.default_cache_dir().name == "weightsmith"


def test_a_header_that_is_no_object_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "f", metadata={"weightsmith": "[]"})
    with pytest.raises(WeightsmithError):
        read_tensors(tmp_path / "f", "weightsmith-delta-1")


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".a.json.123.0011aabb.tmp").write_text("half")
    (tmp_path / ".model.x7.tmp").mkdir()
    (tmp_path / ".model.x7.tmp" / "weights").write_text("half")
    kept = [tmp_path / "cells" / "a.json", tmp_path / "a.tmp", tmp_path / ".lock"]
    for path in kept:
        path.write_text("whole")
    files.remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_what_a_killed_process_left_of_a_folder_goes_and_what_it_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """The child is killed between the two renames, when the old folder has another name and the new one is not there yet."""
    target, beside = tmp_path / "mo[del", tmp_path / ".another.tmp"
    beside.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "which").write_text("old")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from weightsmith import files\n"
        "replace, calls = os.replace, []\n"
        "def killed(*paths):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), 9)\n"
        "    replace(*paths)\n"
        "files.os.replace = killed\n"
        "with files.atomic_folder(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'which').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == -9
    assert not target.exists()
    assert len(names(tmp_path)) == 3
    with pytest.raises(ValueError, match="stop"), atomic_folder(target):
        raise ValueError("stop")
    assert (target / "which").read_text() == "old"
    assert names(tmp_path) == [".another.tmp", "mo[del"]
    assert subprocess.run([sys.executable, "-c", script, target], check=False).returncode == -9
    files.remove_leftovers(tmp_path)
    assert (target / "which").read_text() == "old"
    assert names(tmp_path) == ["mo[del"]


def test_what_a_killed_process_left_of_a_file_goes(tmp_path: Path) -> None:
    """Also where a file was written by way of another."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from weightsmith.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as one, atomic_path(one) as two:\n"
        "    one.write_text('1'), two.write_text('2')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    write_text(tmp_path / "b.onnx", "kept")
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "a.onnx"], check=False).returncode == -9
    assert len(names(tmp_path)) == 3
    files.remove_leftovers_of(tmp_path / "b.onnx")
    assert len(names(tmp_path)) == 3
    files.remove_leftovers_of(tmp_path / "a.onnx")
    assert names(tmp_path) == ["b.onnx"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as first:
        (first / "which").write_text("first")
        with atomic_folder(target) as second:
            (second / "which").write_text("second")
        assert (first / "which").read_text() == "first"
    assert (target / "which").read_text() == "first"
    elsewhere = tmp_path / f".model.{'0' * 8}-99999999-abc.tmp"  # of another machine
    elsewhere.mkdir()
    with atomic_folder(target) as third:
        (third / "which").write_text("third")
    assert names(tmp_path) == [elsewhere.name, "model"]


def test_what_is_a_day_old_is_abandoned(tmp_path: Path) -> None:
    young, old = tmp_path / ".a.tmp", tmp_path / ".b.tmp"
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    files.remove_abandoned(tmp_path)
    files.remove_abandoned(tmp_path / "nowhere")
    assert names(tmp_path) == [".a.tmp"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).T,
        torch.arange(63.0)[7::63],  # one number with a stride of 63, which is contiguous to torch
        torch.arange(63.0).view(9, 7)[2:3, 3:4],
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.arange(4).to(torch.bfloat16),
    ],
)
def test_bytes_of_tensors_however_they_lie(tensor: torch.Tensor) -> None:
    found = files.as_bytes(tensor)
    assert found.dtype == torch.uint8
    assert found.view(tensor.dtype).tolist() == tensor.flatten().tolist()
