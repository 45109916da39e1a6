"""The examples, on what trains in seconds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run.conftest import TINY
from weightsmith.delta import Delta
from weightsmith.run.compress import models as compress_models
from weightsmith.stream import Journal

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Callable[[list[str]], None]:
    """The example's `main`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], None] = module.main
    return main


def test_every_example_is_told_of() -> None:
    told = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in told for path in EXAMPLES.glob("*.py"))


def test_new_scanner(tuned, tmp_path: Path) -> None:
    _, data = tuned
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    flags = [
        "--model",
        str(tmp_path / "tiny.json"),
        "--epochs",
        "1",
        "--max-edits",
        "4",
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    main_of("new_scanner")(["--data-path", str(data["rows"]), *flags])
    report = (tmp_path / "runs" / "new-scanner" / "evaluation_report.csv").read_text()
    assert "efficacy" in report


def test_too_slow(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in its ONNX files is tested where they are made, which takes longer than all the rest."""
    pytest.importorskip("onnxruntime", reason="the example writes ONNX files, and onnxruntime is not installed")
    monkeypatch.setattr(compress_models, "save_onnx", lambda model, path: Path(path).write_bytes(b"a network"))
    main_of("too_slow")(
        [
            "--checkpoint",
            str(finished),
            "--data-path",
            "digits",
            "--time",
            "0.9",
            "--rounds",
            "6",
            "--runs-dir",
            str(tmp_path),
        ]
    )
    made = tmp_path / "too-slow" / "optimized_models"
    assert {path.name for path in made.iterdir()} == {"acdc_threshold_0.05", "latency_ratio_0.9"}
    assert len(list(made.rglob("*.onnx"))) == 2


def test_confused_classes(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "edit.safetensors"
    main_of("confused_classes")(
        ["--model", str(finished), "--data-path", "digits", "--max-edits", "4", "--out", str(out)]
    )
    assert len(Delta.load(out).changes) > 0
    assert "change of accuracy" in capsys.readouterr().out


def test_two_into_one(finished: Path, tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, data = tuned
    models, sets = ([str(where[name]) for name in ("rows", "columns")] for where in ({n: runs / n for n in data}, data))
    main_of("two_into_one")(
        ["--base", str(finished), "--models", *models, "--data-path", *sets, "--judging-images", "20", "--coefficients", "0.5",
         "--out", str(tmp_path / "one"), "--cache-dir", str(tmp_path / "cache")]
    )  # fmt: skip
    report = json.loads((tmp_path / "one" / "merge_report.json").read_text())
    assert f"{report['method']:16}" in capsys.readouterr().out
    assert {row["backbone"] for row in report["search"]["test"]} == {"base", "own", "merged"}


def test_changed_fact(talker: Path, tmp_path: Path) -> None:
    main_of("changed_fact")(
        ["--model", str(talker / "model"), "--facts", str(talker / "facts.json"), "--preserve", str(talker / "text.txt"),
         "--runs-dir", str(tmp_path)]
    )  # fmt: skip
    assert Journal.open(tmp_path / "changed-fact" / "edits").edits() == []
