"""`weightsmith run` on models, checkpoints and run folders that do not fit: one sentence, and earlier results intact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.bad_inputs.conftest import perfect
from tests.bad_inputs.correct import npz
from weightsmith.models import create, save


def check_refused(outcome: object, *words: str) -> None:
    """One sentence on stderr that has these words, status 1, no traceback."""
    text = outcome.err.strip().splitlines()  # type: ignore[attr-defined]
    errors = [line for line in text if line.startswith("error:")]
    assert outcome.status == 1, outcome  # type: ignore[attr-defined]
    assert len(errors) == 1, text
    assert text[-1] == errors[0]
    assert "Traceback" not in outcome.err  # type: ignore[attr-defined]
    for word in words:
        assert word in errors[0], errors[0]


def test_layers_out_of_range(weightsmith, run_copy: Path) -> None:
    flags = ["--runs-dir", run_copy.parent, "--run-name", "base", "--stage", "edit", "--overwrite"]
    check_refused(weightsmith("run", *flags, "--edit-layers", 2, 7), "--edit-layers", "layer 7", "0 to 3")
    check_refused(weightsmith("run", *flags, "--num-edit-layers", 9), "--num-edit-layers 9")


def test_a_checkpoint_of_another_class_count(weightsmith, tiny, tmp_path: Path) -> None:
    save(create("digits", ("a", "b", "c"), 0, channels=1), tmp_path / "three")
    outcome = weightsmith("run", *tiny(tmp_path), "--checkpoint", tmp_path / "three")
    check_refused(outcome, "--checkpoint", "3 classes", "10")


def test_a_checkpoint_of_another_architecture(weightsmith, tiny, tmp_path: Path) -> None:
    save(create("digits", tuple("0123456789"), 0, channels=1), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    check_refused(weightsmith("run", *tiny(tmp_path), "--checkpoint", tmp_path / "model"), str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    check_refused(weightsmith("run", *tiny(tmp_path), "--checkpoint", tmp_path / "model"), str(tmp_path / "model"))


def test_a_checkpoint_of_another_training(weightsmith, tiny, run_copy: Path) -> None:
    """A training checkpoint of another network in the run's place is refused, and left alone."""
    flags = tiny(run_copy.parent.parent)
    model = run_copy.parent.parent / "tiny.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"hidden_size": 16}))
    shutil.copytree(run_copy / "checkpoints", run_copy.parent / "other" / "checkpoints")
    before = (run_copy.parent / "other" / "checkpoints" / "checkpoint.pt").read_bytes()
    assert weightsmith("run", "--stage", "data", *flags, "--run-name", "other").status == 0
    check_refused(
        weightsmith("run", "--stage", "train", *flags, "--run-name", "other"), "checkpoint.pt", "another model"
    )
    assert (run_copy.parent / "other" / "checkpoints" / "checkpoint.pt").read_bytes() == before


def test_a_damaged_training_checkpoint(weightsmith, tiny, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "broken" / "checkpoints" / "checkpoint.pt"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"PK\x03\x04 not really")
    assert weightsmith("run", "--stage", "data", *tiny(tmp_path), "--run-name", "broken").status == 0
    outcome = weightsmith("run", "--stage", "train", *tiny(tmp_path), "--run-name", "broken")
    check_refused(outcome, "checkpoint.pt", "damaged")


def test_a_checkpoint_that_has_seen_held_out_images(weightsmith, tiny, finished: Path, tmp_path: Path) -> None:
    outcome = weightsmith("run", *tiny(tmp_path), "--checkpoint", finished, "--seed", 7)
    check_refused(outcome, "--checkpoint", "--seed")


def test_a_checkpoint_selected_on_held_out_images(weightsmith, tiny, run_copy: Path, tmp_path: Path) -> None:
    """Its training part is apart from what is held out here, its validation part is not."""
    path = run_copy / "data_split_indices.npz"
    with np.load(path) as stored:
        parts = {name: stored[name] for name in stored.files}
    np.savez(path, **(parts | {"val": parts["held_out"][:7]}))
    outcome = weightsmith("run", *tiny(tmp_path), "--checkpoint", run_copy, "--run-name", "selected")
    check_refused(outcome, "--checkpoint", "7 of the 359", "val part")


def test_a_model_without_errors(weightsmith, tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8) % 2
    images = np.where(labels[:, None, None] == 1, 255, 0).astype(np.uint8) * np.ones((60, 8, 8), np.uint8)
    path = npz(tmp_path / "easy.npz", train_images=images, train_labels=labels)
    model = perfect(tmp_path / "perfect")
    flags = ["--data-path", path, "--checkpoint", model, "--runs-dir", tmp_path / "runs", "--run-name", "easy"]
    check_refused(weightsmith("run", *flags), "no errors", "--edit-from")
    assert (tmp_path / "runs" / "easy" / "model" / "model.safetensors").exists()
    outcome = weightsmith("run", "--stage", "edit", "--runs-dir", tmp_path / "runs", "--run-name", "easy")
    check_refused(outcome, "no errors", "--edit-from")
    assert not (tmp_path / "runs" / "easy" / "edited").exists()


def test_a_stage_before_its_time(weightsmith, tiny, tmp_path: Path) -> None:
    assert weightsmith("run", "--stage", "data", *tiny(tmp_path), "--run-name", "early").status == 0
    for stage, needed in (("locate", "train"), ("edit", "train"), ("eval", "edit")):
        outcome = weightsmith("run", "--stage", stage, "--runs-dir", tmp_path / "runs", "--run-name", "early")
        check_refused(outcome, stage, f"--stage {needed}")


def test_data_that_changed_since_the_split(weightsmith, run_copy: Path) -> None:
    record = run_copy / "data_split.json"
    record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0', 1))
    flags = ["--runs-dir", run_copy.parent, "--run-name", "base", "--stage", "eval", "--overwrite"]
    check_refused(weightsmith("run", *flags), "data_split.json", "new run")


def test_missing_and_damaged_results_of_earlier_stages(weightsmith, run_copy: Path) -> None:
    flags = ["--runs-dir", run_copy.parent, "--run-name", "base", "--stage", "eval", "--overwrite"]
    (run_copy / "delta.safetensors").write_bytes(b"nonsense")
    check_refused(weightsmith("run", *flags), "delta.safetensors")
    (run_copy / "requests.safetensors").unlink()
    check_refused(weightsmith("run", *flags), "requests.safetensors")
