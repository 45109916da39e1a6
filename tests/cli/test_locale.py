"""Other locales: the same words give the same files, or one sentence says what to set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightsmith.cli.names import check_names
from weightsmith.errors import WeightsmithError
from weightsmith.merge import merge

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""What makes Python take file names for ASCII; LC_ALL=C alone does not, since Python 3.7."""


def called(words: list[object], place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "weightsmith", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
        cwd=place, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="elsewhere file names are Unicode whatever the locale")
@pytest.mark.parametrize("where", ["word", "folder"])
def test_a_locale_that_cannot_name_a_file_is_told(tmp_path: Path, where: str) -> None:
    place = tmp_path / "läufe"
    place.mkdir()
    words = ["run", "--data-path", "digits", "--run-name", "größe" if where == "word" else "x"]
    done = called(words, tmp_path if where == "word" else place, **ASCII)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert "PYTHONUTF8=1" in " ".join(done.stderr.split())
    assert list(place.iterdir()) == []


def test_a_name_that_is_no_text_is_told() -> None:
    with pytest.raises(WeightsmithError, match="is no text in UTF-8") as told:
        check_names(["run", "--run-name", b"gr\xf6\xdfe".decode("utf-8", "surrogateescape")])
    str(told.value).encode()
    check_names(["run", "--run-name", "größe ı İ"])


@pytest.mark.skipif(os.name != "posix", reason="locales are set otherwise elsewhere")
def test_plain_c_reads_and_writes_utf8(tmp_path: Path) -> None:
    """A merge of two state dicts under names with umlauts gives the bytes that it gives here."""
    for number, name in enumerate(("bäse", "öne")):
        tensors = {"gewicht.größe": torch.arange(6.0).view(2, 3) * (1 + number)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    words = ["merge", "--base", "bäse.safetensors", "--models", "öne.safetensors", "--out", "läufe"]
    done = called(words, tmp_path, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    here = merge("task_arithmetic", tmp_path / "bäse.safetensors", [tmp_path / "öne.safetensors"], tmp_path / "here")
    assert load_file(tmp_path / "läufe" / "model.safetensors").keys() == {"gewicht.größe"}
    assert here.report["output"]["fingerprint"] in (tmp_path / "läufe" / "README.md").read_text(encoding="utf-8")
    assert "öne" in (tmp_path / "läufe" / "README.md").read_text(encoding="utf-8")
