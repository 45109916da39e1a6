"""`--json`: one object on stdout, whatever becomes of the command, and the exit status that the table has."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch

from weightsmith.cli import running
from weightsmith.cli.telling import plain, tell_json
from weightsmith.models import save
from weightsmith.run.outcome import Outcome
from weightsmith.run.tables import numbers


def told(seen) -> dict:
    """The object on stdout, which is all of it."""
    assert len(seen.out.splitlines()) == 1, seen.out
    found = json.loads(seen.out)
    assert isinstance(found, dict)
    assert found["status"] == seen.status
    return found


@pytest.fixture
def folders(tiny_model, tmp_path: Path) -> list[Path]:
    made = []
    for name, step in (("base", 0.0), ("one", 0.03)):
        model = tiny_model("vit")
        with torch.no_grad():
            for place, parameter in enumerate(model.module.parameters()):
                parameter.add_(step * (1 + place % 3))
        save(model, tmp_path / name)
        made.append(tmp_path / name)
    return made


def test_a_finished_command(weightsmith, folders, tmp_path: Path) -> None:
    base, one = folders
    seen = weightsmith("merge", "--base", base, "--models", one, "--out", tmp_path / "out", "--json")
    found = told(seen)
    assert found["command"] == "merge"
    assert found["folder"] == str(tmp_path / "out")
    on_disk = {str(path) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(found["files"]) == on_disk
    assert found["figures"]["models"][0]["change_over_base"] > 0
    assert found["figures"]["output"]["tensors"] > 10


def test_a_run(weightsmith, tiny, tmp_path: Path) -> None:
    found = told(weightsmith("run", *tiny(tmp_path), "--stage", "data", "--run-name", "a", "--json"))
    place = tmp_path / "runs" / "a"
    assert found["folder"] == str(place)
    assert found["page"] == str(place / "report.html")
    assert {str(place / name) for name in ("config.yaml", "data_split.json", "report.html")} <= set(found["files"])
    assert all(Path(name).is_file() for name in found["files"])


def test_headline_figures_have_intervals() -> None:
    """Of a table that a stage has left as text: numbers are numbers, empty fields null."""
    assert numbers({"metric": "accuracy", "class": "", "value": "0.5", "low": "0.41", "n": "12", "success": "True"}) == {
        "metric": "accuracy", "class": None, "value": 0.5, "low": 0.41, "n": 12, "success": True,
    }  # fmt: skip


def test_bad_input(weightsmith, tmp_path: Path) -> None:
    seen = weightsmith("merge", "--base", "nowhere", "--models", "x", "--out", tmp_path / "out", "--json")
    assert seen.status == 1
    assert "nowhere" in told(seen)["error"]
    assert seen.err.startswith("error: ")
    seen = weightsmith("run", "--config", tmp_path / "absent.yaml", "--json")
    assert seen.status == 1
    assert "absent.yaml" in told(seen)["error"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "--resume"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), 1, "disk is full"),
        (FileExistsError(errno.EEXIST, "File exists", "runs"), 1, "a file is where a folder should be"),
    ],
)
def test_what_ends_a_command(weightsmith, monkeypatch, error: BaseException, status: int, words: str) -> None:
    def fails(call: object) -> Outcome:
        raise error

    monkeypatch.setattr(running, "_outcome", fails)
    seen = weightsmith("facts", "--json")
    assert seen.status == status
    assert words in told(seen)["error"]


def test_a_defect_keeps_its_traceback(weightsmith, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(call: object) -> Outcome:
        raise ZeroDivisionError("never")

    monkeypatch.setattr(running, "_outcome", fails)
    with pytest.raises(ZeroDivisionError):
        weightsmith("facts", "--json")
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: never", "status": 1}


def test_the_status_of_an_outcome_is_the_exit_status(weightsmith, monkeypatch) -> None:
    monkeypatch.setattr(running, "_outcome", lambda _: Outcome(command="doctor", status=1, shown=["Broken: torch."]))
    seen = weightsmith("doctor")
    assert seen.status == 1
    assert "Broken: torch." in seen.out


def test_values_that_json_does_not_know(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figures = {
        "nan": math.nan, "endless": math.inf, "path": tmp_path, "torch": torch.tensor(2.5), "pair": (1, True, None),
        3: "number as a name",
    }  # fmt: skip
    tell_json(Outcome(command="x", figures=figures), [tmp_path / "gone"])
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == []
    assert found["figures"] == {
        "nan": None, "endless": "inf", "path": str(tmp_path), "torch": 2.5, "pair": [1, True, None],
        "3": "number as a name",
    }  # fmt: skip
    assert plain({"a": {1: [math.nan]}}) == {"a": {"1": [None]}}
