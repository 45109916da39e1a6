"""Clocks that are set back or forward while a run is stopped: what is finished is known by order, not by time."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from weightsmith.files import remove_abandoned
from weightsmith.run import folder as folders
from weightsmith.run.folder import RunFolder, existing_runs
from weightsmith.run.options.folder import FolderOptions


def at(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    """Set the clock."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(told).replace(tzinfo=UTC)

    monkeypatch.setattr(folders, "datetime", Clock)


def test_a_stage_that_was_redone_under_an_earlier_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.named(FolderOptions(runs_dir=str(tmp_path)), "x")
    run.path.mkdir()
    for clock, event, key in (
        ("2030-01-01T00:00:00", "start", None),
        ("2030-01-01T00:00:01", "done", "first"),
        ("1970-01-01T00:00:00", "start", None),  # the battery of the clock is empty
    ):
        at(monkeypatch, clock)
        run.log_event("train", event, **({"key": key} if key else {}))
    assert run.done("train") is None
    at(monkeypatch, "2026-10-25T02:30:00")
    run.log_event("train", "done", key="second")
    assert run.done("train") == "second"
    assert [entry["time"][:4] for entry in run.events()] == ["2030", "2030", "1970", "2026"]


def test_files_of_the_future_and_of_the_past(tmp_path: Path) -> None:
    """They are listed, and a temporary file that the future wrote is left to its owner."""
    for name, year in (("old", 1971), ("new", 2100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1")
        stamp = time.mktime((year, 1, 1, 0, 0, 0, 0, 0, -1))
        os.utime(tmp_path / name, (stamp, stamp))
        (tmp_path / f".{name}.tmp").write_text("half")
        os.utime(tmp_path / f".{name}.tmp", (stamp, stamp))
    assert existing_runs(str(tmp_path)) == ["new", "old"]
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".new.tmp"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set here")
def test_events_are_told_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour that comes twice in a zone, at the end of summer time, comes once."""
    run = RunFolder.named(FolderOptions(runs_dir=str(tmp_path)), "x")
    run.path.mkdir()
    try:
        for zone in ("Europe/Berlin", "Asia/Kolkata"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            run.log_event("data", "start")
    finally:
        monkeypatch.undo()
        time.tzset()
    first, second = (datetime.fromisoformat(entry["time"]) for entry in run.events())
    assert first.utcoffset() == second.utcoffset() == datetime.now(UTC).utcoffset()
    assert abs((second - first).total_seconds()) < 60
