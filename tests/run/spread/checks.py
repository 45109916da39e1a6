"""What holds of cells whoever measures them; each backend has a file of tests, for a cluster is started once a file."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.run.spread import measures
from weightsmith.errors import WeightsmithError
from weightsmith.run.spread import Failure, Settings, Sweep, each

HERE = Settings("processes", 1, 1)
MANY = [("fine", number) for number in range(7)]
TIMES = ("seconds", "cpu_seconds", "search_seconds")
"""Columns and entries that say how long something took."""


def settings_at(backend: str, address: str = "", jobs: int | None = None) -> Settings:
    return Settings(backend, jobs, 1, address, f"--address {address}")


def sweep(place: Path, *cells: tuple[str, int], refused: str = "") -> Sweep:
    titles = [f"{kind} {number}" for kind, number in cells]
    return Sweep(cells, titles, partial(measures.measure, place), partial(measures.make, place, refused))


def found(place: Path, spread: Settings, *cells: tuple[str, int]) -> list[Any]:
    """What cells came to, in their order."""
    answers = dict(each(sweep(place, *cells), spread))
    return [answers[number] for number in range(len(cells))]


def check_that_every_cell_comes_back(spread: Settings, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One sweep, for workers take seconds to begin: values, failures, warnings, bits, and where it was all measured."""
    cells = [("fine", 3), ("refused", 1), ("defect", 5), ("warned", 7), *[("random", size) for size in (150, 250)]]
    more = [("both", number) for number in range(6)]
    with caplog.at_level(logging.INFO, "weightsmith"):
        here = found(place, HERE, *cells)
        list(map(Path.unlink, place.glob("made-*")))
        there = found(place, spread, *cells, *more)
    assert [one for one in here if not isinstance(one, Failure)][:2] == [9, 49]
    assert [one.why for one in here if isinstance(one, Failure)] == [
        "1 cannot be measured: give another",
        "ZeroDivisionError: integer division or modulo by zero",
    ]
    assert [getattr(one, "why", one) for one in there[:6]] == [getattr(one, "why", one) for one in here]
    assert "number // 0" in there[2].trace
    assert there[1].trace == ""
    assert caplog.messages.count("refused 1 failed: 1 cannot be measured: give another") == 2
    assert "warned 7: 7 is odd" in caplog.messages
    assert "12 cells, 2 at a time, on " in caplog.text
    workers = {pid for pid, _, _ in there[6:]}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert {(threads, folder) for _, threads, folder in there[6:]} == {(1, os.getcwd())}
    assert len(list(place.glob("made-*"))) == 2, "each of the two workers begins once"


def check_what_ends_every_sweep(spread: Settings, place: Path) -> None:
    with pytest.raises(WeightsmithError, match="disk is full"):
        found(place, spread, *MANY, ("full", 0), *MANY)


def check_a_worker_that_cannot_begin(spread: Settings, place: Path) -> None:
    with pytest.raises(WeightsmithError, match=f"a worker on {socket.gethostname()} cannot begin: no such model"):
        list(each(sweep(place, *MANY, refused="no such model: give another"), spread))


def check_that_a_cell_fails_whose_workers_are_killed(spread: Settings, place: Path) -> None:
    """Clusters try another worker, and then it has failed."""
    answers = found(place, spread, *MANY[:2], ("killed", 0), *MANY[2:5])
    assert isinstance(answers[2], Failure)
    assert "its worker was lost" in answers[2].why
    assert [answers[number] for number in (0, 1, 3, 4, 5)] == [0, 1, 4, 9, 16]


# --- commands -------------------------------------------------------------------------------------------------------


def table(path: Path) -> bytes:
    """A CSV file without what says how long something took."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    kept = [name for name in rows[0] if not name.startswith(TIMES)]
    told = io.StringIO()
    writer = csv.DictWriter(told, kept, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return told.getvalue().encode()


def cells(run: Path) -> dict[str, Any]:
    """Every cell's file, numbers as long as they are, without times."""
    return {path.name: untimed(json.loads(path.read_text())) for path in sorted((run / "cells").glob("*.json"))}


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: untimed(one) for name, one in value.items() if name not in TIMES}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def comparison(classifier: Path, runs: Path, *more: object) -> list[str]:
    """A comparison of eight cells that takes seconds."""
    given = ["--model", classifier, "--data-path", "digits", "--n-views", 2, "--device", "cpu"]
    quick = ["--methods", "alphaedit", "rome", "--batch-sizes", 1, 2, "--seeds", 0, 1]
    return [str(word) for word in ("compare", *given, *quick, "--runs-dir", runs, "--run-name", "c", *more)]


def ablation(classifier: Path, runs: Path, way: str, *more: object) -> list[str]:
    given = ["--model", classifier, "--data-path", "digits", "--n-views", 2, "--device", "cpu"]
    which: list[object] = ["--ranks", 1, 4, "--fit-steps", 0, 3, "--max-edits", 3]
    if way == "replay":
        which = ["--max-edits", 6, "--batch-size", 2, "--buffers", 2, "--strategies", "random", "recent"]
    return [str(word) for word in ("ablate", way, *given, *which, "--runs-dir", runs, "--run-name", way, *more)]


def check_that_a_comparison_is_the_same(weightsmith: Any, finished: Path, alone: Path, runs: Path, *flags: str) -> None:
    outcome = weightsmith(*comparison(finished, runs, *flags))
    assert outcome.status == 0, outcome.err
    assert "8 cells, 2 at a time" in outcome.err
    check_that_it_is_the_same(alone, runs)


def check_that_it_is_the_same(alone: Path, runs: Path) -> None:
    for name in ("baseline_comparison.csv", "comparison_table.csv"):
        assert table(runs / "c" / name) == table(alone / "c" / name)
    assert cells(runs / "c") == cells(alone / "c")
    assert len(cells(runs / "c")) == 8
    assert json.loads((runs / "c" / "env.json").read_text())["cell_threads"] == 1


def check_that_an_ablation_is_the_same(
    weightsmith: Any, finished: Path, alone: Path, runs: Path, way: str, *flags: str
) -> None:
    outcome = weightsmith(*ablation(finished, runs, way, *flags))
    assert outcome.status == 0, outcome.err
    name = {"lora": "lora_native_ablation.csv", "replay": "replay_ablation.csv"}[way]
    assert table(runs / way / name) == table(alone / way / name)
    assert cells(runs / way) == cells(alone / way)


def smaller(run: Path, *more: object) -> list[object]:
    wanted = ["--mode", "optimize", "--no-study", "--analysis-batches", 2, "--judging-images", 64, "--round-widths", 4]
    goals = ["--acdc-thresholds", 0.05, "--eap-keep-ratios", 0.9, 0.7]
    return ["compress", *wanted, *goals, "--runs-dir", run.parent, "--run-name", run.name, *more]
