"""A small run on the digits that the tests here share; it is made once a test process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from weightsmith import cli

TINY = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def weightsmith(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process: `weightsmith("run", "--stage", "data")`."""
    monkeypatch.setenv("COLUMNS", "400")  # so that no message is wrapped

    def run(*arguments: object) -> Outcome:
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        seen = capsys.readouterr()
        return Outcome(status, seen.out, seen.err)

    return run


def tiny_flags(folder: Path, runs: Path) -> list[str]:
    """Flags of a run that takes seconds: digits, a two-block ViT trained briefly, so that it makes errors."""
    model = folder / "tiny.json"
    model.write_text(json.dumps(TINY))
    flags = {
        "--data-path": "digits",
        "--val-ratio": 0.3,
        "--model": model,
        "--epochs": 6,
        "--lr": 3e-3,
        "--batch-size": 64,
        "--runs-dir": runs,
        "--max-samples": 4,
        "--num-ablations": 4,
        "--max-edits": 12,
        "--device": "cpu",
    }
    return [str(word) for pair in flags.items() for word in pair]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all stages with two methods; do not write into it, copy it with `run_copy`."""
    folder = tmp_path_factory.mktemp("finished")
    flags = tiny_flags(folder, folder / "runs")
    cli.main(["run", *flags, "--run-name", "base", "--edit-method", "alphaedit", "head", "--closed-form"])
    return folder / "runs" / "base"


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "base"))


@pytest.fixture
def tiny() -> Callable[[Path], list[str]]:
    """Flags of a tiny run in a folder."""
    return lambda folder: tiny_flags(folder, folder / "runs")
