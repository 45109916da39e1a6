"""Which editor `weightsmith run` takes when nobody names one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from weightsmith.delta import Delta
from weightsmith.files import read_csv
from weightsmith.models import Model, save


@pytest.fixture
def trained_only(finished: Path, tmp_path: Path) -> Path:
    """The folder of a run that is trained and not edited; its model is the finished run's."""
    return Path(shutil.copytree(finished / "model", tmp_path / "model"))


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ([], "patcher"),
        (["--edit-layers", 2], "alphaedit"),
        (["--ridge", 0.2], "alphaedit"),
        (["--no-whiten"], "alphaedit"),
    ],
)
def test_a_vision_transformer_is_patched_unless_layers_or_ridges_are_spoken_of(
    flags: list[object], method: str, weightsmith, tiny: Callable[[Path], list[str]], trained_only: Path, tmp_path: Path
) -> None:
    checkpoint = ("--checkpoint", trained_only, "--edit-from", "val", "--run-name", "mine")
    outcome = weightsmith("run", "--stage", "full", *tiny(tmp_path), *checkpoint, *flags)
    assert outcome.status == 0, outcome.err
    results = tmp_path / "runs" / "mine"
    assert Delta.load(results / "delta.safetensors").info["method"] == method
    log = "edit_log.csv" if method == "alphaedit" else f"{method}_edit_log.csv"
    assert all(row["success"] == "True" for row in read_csv(results / log))
    rows = list(read_csv(results / "evaluation_report.csv"))
    assert {row["method"] for row in rows} == {method}
    assert method in (results / "report.html").read_text()


def test_a_model_without_cls_gets_alphaedit(
    weightsmith, tiny_model: Callable[..., Model], tiny: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    save(tiny_model("mlp", classes=10), tmp_path / "mlp")
    flags = (*tiny(tmp_path), "--checkpoint", tmp_path / "mlp", "--edit-from", "val", "--run-name", "mine")
    for stage in ("data", "train", "edit", "eval"):  # a plain MLP has no tokens to trace
        outcome = weightsmith("run", "--stage", stage, *flags)
        assert outcome.status == 0, outcome.err
    assert Delta.load(tmp_path / "runs" / "mine" / "delta.safetensors").info["method"] == "alphaedit"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["auto", "head"], ["--edit-method auto stands alone"]),
        (["patcher", "--edit-layers", 1], ["--edit-layers is not for patcher", "leave it out"]),
        (["patcher", "head", "--layers-from", "x"], ["--layers-from is not for patcher head"]),
        (["patchre"], ["did you mean 'patcher'"]),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[object], words: list[str], weightsmith, tiny: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    outcome = weightsmith("run", *tiny(tmp_path), "--edit-method", *flags)
    assert outcome.status == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "runs").exists()
