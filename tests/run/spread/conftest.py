"""What runs of several processes are compared with, and what they begin with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run.conftest import TINY, Once, undrawn
from tests.run.spread.checks import ablation, comparison
from weightsmith import cli


@pytest.fixture(scope="session")
def alone(finished: Path, once: Once) -> Path:
    """The runs of one process on one thread; do not write into them."""

    def make(runs: Path) -> None:
        with undrawn():
            cli.main(comparison(finished, runs, "--threads", 1))
            for way in ("lora", "replay"):
                cli.main(ablation(finished, runs, way, "--threads", 1))

    return once("alone", make)


@pytest.fixture
def baseline(weightsmith, tmp_path: Path) -> Path:
    """A run of `compress` that has a baseline and no smaller models."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY | {"num_hidden_layers": 2}))
    given = ["--model", tmp_path / "tiny.json", "--epochs", 2, "--lr", "3e-3", "--device", "cpu", "--mode", "train"]
    outcome = weightsmith("compress", *given, "--runs-dir", tmp_path, "--run-name", "one")
    assert outcome.status == 0, outcome.err
    return tmp_path / "one"
