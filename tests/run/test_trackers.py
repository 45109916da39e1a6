"""`--tracker tensorboard` through a whole command: what TensorBoard reads back is what the run's table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.conftest import assert_refused
from weightsmith.files import read_csv


def test_tensorboard_is_told_every_epoch(weightsmith, tiny, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "runs").mkdir()
    flags = tiny(tmp_path)
    model = flags[flags.index("--model") + 1]
    flags = ["--data-path", "digits", "--model", model, "--epochs", 2, "--lr", 3e-3, "--device", "cpu"]
    done = weightsmith(
        "baseline", *flags, "--runs-dir", tmp_path / "runs", "--run-name", "b", "--tracker", "tensorboard"
    )
    assert done.status == 0, done.err
    run = tmp_path / "runs" / "b"
    # The options are stored one folder below.
    file = min((run / "trackers").rglob("*tfevents*"), key=lambda path: len(path.parts))
    told = events.EventAccumulator(str(file.parent))
    told.Reload()
    rows = list(read_csv(run / "baseline_training_history.csv"))
    curves = [name for name in rows[0] if name != "epoch"]
    assert len(rows) == 2
    assert set(curves) <= set(told.Tags()["scalars"])
    for name in curves:
        seen = {event.step: event.value for event in told.Scalars(name)}
        assert seen == pytest.approx({int(row["epoch"]): float(row[name]) for row in rows}, rel=1e-4, abs=1e-6)


def test_a_tracker_that_is_none_is_refused_before_anything_is_read(weightsmith, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    flags = ["--data-path", "digits", "--runs-dir", tmp_path / "runs", "--tracker", "tensorbaord"]
    for command in ("run", "baseline", "compress"):
        assert_refused(weightsmith(command, *flags), ["--tracker tensorbaord", "did you mean 'tensorboard'?"])
    assert not (tmp_path / "runs").exists()
