"""Commands whose cells are measured side by side: the same bytes whoever measured them, and nothing lost."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.run.conftest import TINY, assert_refused
from tests.run.spread.measures import alive
from weightsmith import cli
from weightsmith.errors import WeightsmithError
from weightsmith.files import read_csv
from weightsmith.run.compress.goals import Goal

TIMES = ("seconds", "cpu_seconds", "search_seconds")
"""Columns and entries that say how long something took."""


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


def comparison(talker: Path, runs: Path, *more: object) -> list[str]:
    """A comparison of twelve cells that takes seconds."""
    given = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    files = ["--hparams", talker / "memit.yaml", talker / "finetune.yaml"]
    quick = ["--methods", "memit", "finetune", *files, "--batch-sizes", 1, 3, "--seeds", 0, 1, 2]
    where = ["--runs-dir", runs, "--run-name", "c", "--cache-dir", runs / "cache", "--device", "cpu"]
    return [str(word) for word in ("compare", *given, *quick, *where, *more)]


def ablation(talker: Path, runs: Path, way: str, *more: object) -> list[str]:
    given = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    quick = ["--edit-method", "memit", "--hparams", talker / "memit.yaml", "--device", "cpu"]
    which: list[object] = ["--ranks", 1, 4, "--fit-steps", 0, 3, "--max-edits", 3, "--seeds", 0, 1]
    if way == "replay":
        which = ["--max-edits", 6, "--batch-size", 2, "--buffers", 2, "--strategies", "random", "recent"]
    where = ["--runs-dir", runs, "--run-name", way, "--cache-dir", runs / "cache"]
    return [str(word) for word in ("ablate", way, *given, *quick, *which, *where, *more)]


@pytest.fixture(scope="session")
def alone(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process on one thread; do not write into them."""
    runs = tmp_path_factory.mktemp("alone")
    cli.main(comparison(talker, runs, "--threads", 1))
    for way in ("lora", "replay"):
        cli.main(ablation(talker, runs, way, "--threads", 1))
    return runs


# --- the same, whoever measures -------------------------------------------------------------------------------------


def test_a_comparison_is_the_same_to_the_last_bit(
    weightsmith, talker: Path, alone: Path, flags: list[str], tmp_path: Path
) -> None:
    outcome = weightsmith(*comparison(talker, tmp_path, *flags))
    assert outcome.status == 0, outcome.err
    for name in ("baseline_comparison.csv", "comparison_table.csv"):
        assert table(tmp_path / "c" / name) == table(alone / "c" / name)
    assert cells(tmp_path / "c") == cells(alone / "c")
    assert len(cells(tmp_path / "c")) == 12
    assert "12 cells, 2 at a time" in outcome.err
    assert json.loads((tmp_path / "c" / "env.json").read_text())["cell_threads"] == 1


@pytest.mark.parametrize(("way", "name"), [("lora", "lora_native_ablation.csv"), ("replay", "replay_ablation.csv")])
def test_an_ablation_is_the_same_to_the_last_bit(
    weightsmith, talker: Path, alone: Path, tmp_path: Path, request: pytest.FixtureRequest, way: str, name: str
) -> None:
    flags = request.getfixturevalue("on_ray" if way == "lora" else "on_dask")
    outcome = weightsmith(*ablation(talker, tmp_path, way, *flags))
    assert outcome.status == 0, outcome.err
    assert table(tmp_path / way / name) == table(alone / way / name)
    assert cells(tmp_path / way) == cells(alone / way)


@pytest.fixture
def baseline(weightsmith, tmp_path: Path) -> Path:
    """A run of `compress` that has a baseline and no smaller models."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY | {"num_hidden_layers": 2}))
    given = ["--model", tmp_path / "tiny.json", "--epochs", 2, "--lr", "3e-3", "--device", "cpu", "--mode", "train"]
    outcome = weightsmith("compress", *given, "--runs-dir", tmp_path, "--run-name", "one")
    assert outcome.status == 0, outcome.err
    return tmp_path / "one"


def smaller(run: Path, *more: object) -> list[object]:
    wanted = ["--mode", "optimize", "--no-study", "--analysis-batches", 2, "--judging-images", 64, "--round-widths", 4]
    goals = ["--acdc-thresholds", 0.05, "--eap-keep-ratios", 0.9, 0.7]
    return ["compress", *wanted, *goals, "--runs-dir", run.parent, "--run-name", run.name, *more]


def test_models_made_smaller_are_the_same_to_the_last_bit(
    weightsmith, baseline: Path, on_ray: list[str], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(baseline, tmp_path / "two"))
    for run, how in ((baseline, ["--threads", 1]), (other, on_ray)):
        outcome = weightsmith(*smaller(run, *how))
        assert outcome.status == 0, outcome.err
    made = sorted(path.relative_to(baseline) for path in baseline.rglob("*.safetensors"))
    assert len(made) == 4
    for path in made:
        assert (other / path).read_bytes() == (baseline / path).read_bytes()
    assert (other / "events.jsonl").read_text().count('"optimized"') == 3


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


def test_coefficients_are_the_same_to_the_last_bit(
    weightsmith, finished: Path, on_dask: list[str], tmp_path: Path
) -> None:
    given = ["--pretrained", finished / "model", "--finetuned", finished / "edited", "--data-path", "digits"]
    given += ["--modes", "anchored", "--operations", "subtract", "add", "--coefficients", 0, 0.5, 1, "--device", "cpu"]
    for name, how in (("one", ["--threads", 1]), ("two", on_dask)):
        outcome = weightsmith("artificial", *given, "--runs-dir", tmp_path, "--run-name", name, *how)
        assert outcome.status == 0, outcome.err
    assert (tmp_path / "one" / "sweep.csv").read_bytes() == (tmp_path / "two" / "sweep.csv").read_bytes()
    assert cells(tmp_path / "one") == cells(tmp_path / "two")
    assert len(cells(tmp_path / "two")) == 6


# --- stopped and gone on with ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["interrupted", "worker killed", "command killed"])
def test_what_was_stopped_is_gone_on_with(weightsmith, talker: Path, alone: Path, tmp_path: Path, how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "weightsmith", *comparison(talker, tmp_path, "--jobs", 2)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches all processes of a terminal
    )
    place = tmp_path / "c" / "cells"
    try:
        wait(lambda: len(list(place.glob("*.json"))) >= 2, process)
        workers = children(process.pid)
        assert len(workers) >= 2
        if how == "interrupted":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(workers[0] if how == "worker killed" else process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == {"interrupted": 130, "worker killed": 1, "command killed": -signal.SIGKILL}[how]
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == (how != "command killed"), err
    assert all("--resume" in line for line in errors)
    wait(lambda: not any(map(alive, workers)))
    done = {path: path.stat().st_mtime_ns for path in place.glob("*.json")}
    assert 2 <= len(done) < 12
    # In this process, on the threads of the cells that are there.
    outcome = weightsmith("compare", "--runs-dir", tmp_path, "--run-name", "c", "--resume", "--jobs", 1)
    assert outcome.status == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert f"{len(done)} of 12 cells are measured already" in outcome.err
    assert cells(tmp_path / "c") == cells(alone / "c")


def wait(there: Any, process: Any = None) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process is None or process.poll() is None, f"it ended too early: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that measure for a process, on Linux."""
    found = Path(f"/proc/{pid}/task")
    pids = [int(one) for path in found.glob("*/children") for one in path.read_text().split()]
    return [one for one in pids if b"popen_loky" in Path(f"/proc/{one}/cmdline").read_bytes()]


# --- cells that fail ------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_told_with_what_measures_it_again(
    weightsmith, talker: Path, on_dask: list[str], tmp_path: Path
) -> None:
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({"method": "rome", "layers": [0, 1]}))
    given = comparison(talker, tmp_path, "--methods", "rome", "finetune", "--batch-sizes", 2, "--seeds", 0, 1)
    files = ["--hparams", tmp_path / "wide.yaml", talker / "finetune.yaml"]
    outcome = weightsmith(*given, *files, *on_dask)
    assert outcome.status == 3, outcome.err
    assert "rome, 2 edits, seed 0 failed: ROME edits one layer" in outcome.out
    again = f"weightsmith compare --runs-dir {tmp_path} --run-name c --resume"
    assert f"2 of 4 cells failed: `{again}` measures them again" in outcome.out
    rows = read_csv(tmp_path / "c" / "baseline_comparison.csv")
    assert [bool(row["error"]) for row in rows] == [True, True, False, False]
    outcome = weightsmith(*again.split()[1:], "--backend", "processes")
    assert outcome.status == 3, outcome.err
    assert "2 of 4 cells are measured already" in outcome.err


def test_a_run_keeps_its_threads(weightsmith, talker: Path, tmp_path: Path) -> None:
    given = comparison(talker, tmp_path, "--methods", "finetune", "--hparams", talker / "finetune.yaml")
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


# --- bad flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--jobs", 0], ["--jobs must be at least 1"]),
        (["--threads", -1], ["--threads must be at least 1"]),
        (["--address", "127.0.0.1:8786"], ["--address 127.0.0.1:8786", "--backend ray or --backend dask"]),
        (["--backend", "dask", "--address", "127.0.0.1:1"], ["--address 127.0.0.1:1", "no Dask cluster answers there"]),
        (["--backend", "ray", "--address", "nowhere"], ["--address nowhere is no address of a Ray cluster"]),
    ],
)
@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_bad_flags(
    weightsmith, talker: Path, tmp_path: Path, command: str, flags: list[object], words: list[str]
) -> None:
    pytest.importorskip("ray" if "ray" in flags else "distributed" if "dask" in flags else "joblib")
    given = comparison(talker, tmp_path) if command == "compare" else ablation(talker, tmp_path, "lora")
    assert_refused(weightsmith(*given, *flags), words)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_a_backend_that_is_nearly_right(weightsmith, talker: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*comparison(talker, tmp_path, "--backend", "rai"))
    assert outcome.status == 2
    assert "ray" in outcome.err
