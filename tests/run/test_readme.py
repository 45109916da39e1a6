"""The README's Python block runs as it is printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import weightsmith as ws

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_example_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`runs/demo` is a small stand-in for what `make demo` leaves: the same stages and data, a smaller model."""
    assert BLOCK is not None
    shutil.copytree(finished, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(BLOCK[1], "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert "held-out accuracy" in out
    assert "efficacy             1.0000" in out
    delta, undo, half = names["delta"], names["undo"], names["half"]
    assert isinstance(delta, ws.Delta)
    stored = ws.Delta.load("fix.safetensors")
    assert set(stored.changes) == set(delta.changes)
    for name, change in delta.changes.items():
        assert torch.equal(stored.changes[name].dense(), change.dense())
        assert torch.equal(undo.changes[name].dense(), -change.dense())
        assert torch.allclose(half.changes[name].dense(), 0.5 * change.dense())
    assert Path("fix-adapter/adapter_model.safetensors").exists()


def test_the_readme_names_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
