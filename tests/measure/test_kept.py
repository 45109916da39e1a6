"""What is kept: read back as it was, and never taken for what it is not."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weightsmith import files
from weightsmith.errors import WeightsmithError
from weightsmith.measure.kept import keep_json, keep_tensors, kept_json, kept_tensors

FORMAT = "weightsmith-test-1"


def tensors(offset: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6.0).view(2, 3).mT + offset,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3),
        "none": torch.empty(0, 4),
    }


def keep(path: Path, offset: float = 0.0, **header: object) -> None:
    keep_tensors(path, tensors(offset), {"format": FORMAT, "site": "x", **header})


def test_tensors_are_read_back_as_they_were(tmp_path: Path) -> None:
    keep(tmp_path / "a.safetensors", note=[1, None])
    header, found = kept_tensors(tmp_path / "a.safetensors", FORMAT)
    assert header == {"site": "x", "note": [1, None]}
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def _renamed(path: Path) -> None:
    keep(path.with_name("other.safetensors"), 1.0)
    path.with_name("other.safetensors").rename(path)


def _one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _older(path: Path) -> None:
    keep_tensors(path, tensors(), {"format": "weightsmith-test-0"})


@pytest.mark.parametrize("damage", [_renamed, _one_bit, _cut, _empty, _older])
def test_tensors_that_are_others_are_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "a.safetensors"
    keep(path)
    damage(path)
    with pytest.raises(WeightsmithError, match=r"a\.safetensors"):
        kept_tensors(path, FORMAT)


@pytest.mark.parametrize("value", [["ä", "b"], {"value": 0.1, "n": 3}, [], 0.1 + 0.2])
def test_json_is_read_back_as_it_was(tmp_path: Path, value: object, caplog: pytest.LogCaptureFixture) -> None:
    assert kept_json(tmp_path / "a.json") is None
    keep_json(tmp_path / "a.json", value)
    assert kept_json(tmp_path / "a.json") == value
    assert not caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1", "[]", "null", '["a", "b"]', '{"format": "weightsmith-kept-0"}', '{"format": "weightsmith-kept-1"}'],
)
def test_json_that_is_damaged_is_told(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text(content)
    assert kept_json(tmp_path / "a.json") is None
    assert "a.json is damaged and measured again" in caplog.text


def test_json_that_was_swapped_or_changed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    keep_json(one, [1])
    keep_json(two, [2])
    two.replace(one)
    assert kept_json(one) is None
    keep_json(one, [1])
    one.write_text(json.dumps(json.loads(one.read_text()) | {"value": [7]}))
    assert kept_json(one) is None
    assert "kept as two.json" in caplog.text
    assert "has changed since it was written" in caplog.text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            keep(tmp_path / "cache" / "a.safetensors")
            keep_json(tmp_path / "cache" / "a.json", 1)
    assert caplog.text.count("cannot be written, so what is measured is not kept") == 1
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(WeightsmithError, match="cannot be written"):
        keep_tensors(tmp_path / "cells" / "a.safetensors", tensors(), {"format": FORMAT}, wanted=True)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(WeightsmithError, match="full"):
        keep(tmp_path / "a.safetensors")
    with pytest.raises(WeightsmithError, match="full"):
        keep_json(tmp_path / "a.json", 1)
