"""Cells in processes of this machine, of which none is left behind, and in this one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import forked, wait_until
from tests.run.conftest import assert_refused
from tests.run.spread import measures
from tests.run.spread.checks import (
    HERE,
    MANY,
    check_that_every_cell_comes_back,
    check_that_it_is_the_same,
    check_what_ends_every_sweep,
    comparison,
    found,
    smaller,
    sweep,
)
from tests.run.spread.measures import alive
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.run.compress.goals import Goal
from weightsmith.run.spread import Failure, Settings, each, kept_failure, work

TWO = Settings("processes", 2, 1)


def test_every_cell_comes_back_and_what_fails_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_that_every_cell_comes_back(TWO, tmp_path, caplog)


def test_what_ends_every_sweep(tmp_path: Path) -> None:
    for spread in (HERE, TWO):
        check_what_ends_every_sweep(spread, tmp_path)
    with pytest.raises(HeldOutError, match="held-out data"):
        found(tmp_path, HERE, ("held out", 0))
    # What a worker would answer, without one.
    task = work.Task(_maker(tmp_path), str(tmp_path), ("held out", 0), 1, os.getcwd())
    assert isinstance(work.answered(task).ends, HeldOutError)


def _maker(place: Path) -> Any:
    return sweep(place).make


def test_a_worker_that_cannot_begin(tmp_path: Path) -> None:
    """What it answers; clusters have it from workers of their own."""
    refused = sweep(tmp_path, refused="no such model: give another").make
    ends = work.answered(work.Task(refused, "refused", ("fine", 0), 1, os.getcwd())).ends
    assert isinstance(ends, WeightsmithError)
    assert f"a worker on {socket.gethostname()} cannot begin: no such model" in str(ends)


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    """One sentence, and what was finished stays."""
    with pytest.raises(WeightsmithError, match=r"ended from outside.*--resume"):
        found(tmp_path, TWO, *MANY[:2], ("killed", 0), *MANY[2:5])


def test_nobody_is_left_behind_when_one_stops_listening(tmp_path: Path) -> None:
    answers = each(sweep(tmp_path, *[("where", number) for number in range(20)]), TWO)
    _, (worker, *_) = next(answers)
    answers.close()  # type: ignore[attr-defined]
    wait_until(lambda: not measures.alive(worker))


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert found(tmp_path, Settings("processes", 1, before + 1), ("where", 0))[0][1] == before + 1
    assert torch.get_num_threads() == before


def test_a_traceback_is_kept_beside_a_cell_until_it_is_measured(tmp_path: Path) -> None:
    cell = tmp_path / "memit-1.5-0.json"
    kept_failure(cell, Failure("ValueError: no", "Traceback ..."))
    assert (tmp_path / "memit-1.5-0.traceback.txt").read_text() == "Traceback ..."
    kept_failure(cell, Failure("it cannot be"))
    assert not list(tmp_path.iterdir())


# --- commands -------------------------------------------------------------------------------------------------------


def test_what_was_stopped_is_gone_on_with_to_the_last_bit(
    weightsmith, finished: Path, alone: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then in two processes again, of which one is killed, then in this one on the threads of the cells that are
    there.
    """
    place = tmp_path / "c" / "cells"
    again = ("compare", "--runs-dir", tmp_path, "--run-name", "c", "--resume", "--jobs")
    done: dict[Path, int] = {}
    for words, how, status in (
        (comparison(finished, tmp_path, "--jobs", 2), "interrupted", 130),
        ((*again, 2), "worker killed", 1),
    ):
        before = done
        err, done = stopped(place, tmp_path / "said", words, how, status)
        assert len(before) < len(done) < 8
        assert {path: done[path] for path in before} == before
        assert f"{8 - len(before)} cells, 2 at a time" in err
    assert f"{len(before)} of 8 cells are measured already" in err
    outcome = weightsmith(*again, 1)
    assert outcome.status == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert f"{len(done)} of 8 cells are measured already" in outcome.err
    check_that_it_is_the_same(alone, tmp_path)


def stopped(place: Path, said: Path, words: Sequence[object], how: str, status: int) -> tuple[str, dict[Path, int]]:
    """What a comparison says that is stopped behind the next cell, and when each cell that is there was written."""
    there = set(place.glob("*.json"))
    with forked(said, *words) as command:
        command.until(lambda: set(place.glob("*.json")) - there)
        workers = children(command.pid)
        assert len(workers) >= 2
        if how == "interrupted":  # Ctrl-C reaches all processes of a terminal
            os.killpg(command.pid, signal.SIGINT)
        else:
            os.kill(workers[0], signal.SIGKILL)
        ended = command.ended()
    err = command.said.read_text()
    assert ended == status, err
    assert "Traceback" not in err
    (error,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "--resume" in error
    wait_until(lambda: not any(map(alive, workers)))
    return err, {path: path.stat().st_mtime_ns for path in place.glob("*.json")}


def _where(place: Path) -> None:
    """What a command does, without end."""
    for _, (worker, *_) in each(sweep(place, *[("where", number) for number in range(100_000)]), TWO):
        (place / f"worker-{worker}").touch()


def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    with forked(tmp_path / "said", "--version", slowed=partial(_where, tmp_path)) as command:
        command.until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
        command.kill()
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    wait_until(lambda: not any(map(alive, workers)))


def children(pid: int) -> list[int]:
    """The processes that measure for a process, on Linux."""
    found = Path(f"/proc/{pid}/task")
    pids = [int(one) for path in found.glob("*/children") for one in path.read_text().split()]
    return [one for one in pids if b"popen_loky" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_a_model_that_cannot_be_made_does_not_end_the_others(
    weightsmith, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Goal.circuit

    def circuit(goal: Goal, *given: Any) -> Any:
        if goal.value in broken:
            raise WeightsmithError(f"nothing reaches {goal.value}")
        return real(goal, *given)

    broken = [0.05, 0.9, 0.7]
    monkeypatch.setattr(Goal, "circuit", circuit)
    assert_refused(weightsmith(*smaller(baseline)), ["acdc_threshold_0.05 cannot be made: nothing reaches 0.05"])
    broken = [0.9]
    outcome = weightsmith(*smaller(baseline))
    assert outcome.status == 3, outcome.err
    assert "eap_keep_0.9 failed: nothing reaches 0.9" in outcome.out
    again = f"weightsmith compress --runs-dir {baseline.parent} --run-name one --resume"
    assert f"1 of 3 models failed: `{again}` makes it again" in outcome.out
    broken = []
    outcome = weightsmith(*smaller(baseline))
    assert outcome.status == 0, outcome.err
    assert "2 of 3 smaller models are there already" in outcome.err


def test_a_run_keeps_its_threads(weightsmith, finished: Path, tmp_path: Path) -> None:
    given = comparison(finished, tmp_path, "--methods", "rome")
    assert weightsmith(*given, "--batch-sizes", 1, "--seeds", 0, "--threads", 3).status == 0
    env = tmp_path / "c" / "env.json"
    assert json.loads(env.read_text())["cell_threads"] == 3
    for path in (tmp_path / "c" / "cells").iterdir():
        path.unlink()
    again = ["compare", "--runs-dir", tmp_path, "--run-name", "c", "--resume"]
    assert weightsmith(*again).status == 0
    assert json.loads(env.read_text())["cell_threads"] == 3
    outcome = weightsmith(*again, "--threads", 1)
    assert "were measured with 3 threads: with 1 the last digits may be others" in outcome.err
