"""Bad input ends with one sentence that names the flag or the file, a status that is not 0, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.models import create, save
from weightsmith.models.mlp import MLPConfig, MLPForImageClassification
from weightsmith.models.store import wrap

RNG = np.random.default_rng(0)


def arrays(n: int = 60, classes: int = 3) -> dict[str, np.ndarray]:
    labels = np.arange(n, dtype=np.uint8) % classes
    return {
        "train_images": RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8),
        "train_labels": labels[:, None],
    }


def npz(path: Path, **changes: np.ndarray) -> Path:
    np.savez_compressed(path, **(arrays() | changes))
    return path


def truncated(path: Path) -> Path:
    npz(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def corrupt(path: Path) -> Path:
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def renamed(path: Path) -> Path:
    np.savez(path, images=arrays()["train_images"], labels=arrays()["train_labels"])
    return path


BAD_FILES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path,
    "truncated": truncated,
    "corrupt": corrupt,
    "other names": renamed,
    "not a zip": lambda path: path.write_text("hello") and path,
    "float images": lambda path: npz(path, train_images=arrays()["train_images"] / 255.0),
    "four channels": lambda path: npz(path, train_images=np.zeros((60, 8, 8, 4), np.uint8)),
    "fewer labels": lambda path: npz(path, train_labels=np.zeros((59, 1), np.uint8)),
    "negative label": lambda path: npz(path, train_labels=np.full((60, 1), -1, np.int8)),
    "label out of range": lambda path: npz(path, train_labels=np.array([0] * 59 + [250], np.uint8)),
    "no images": lambda path: npz(path, train_images=np.zeros((0, 8, 8), np.uint8), train_labels=np.zeros(0, np.uint8)),
    "pickle": lambda path: npz(path, train_labels=np.array([{}] * 60, dtype=object)),
}


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


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_npz(weightsmith, tmp_path: Path, kind: str) -> None:
    path = BAD_FILES[kind](tmp_path / "scans.npz")
    runs = tmp_path / "runs"
    outcome = weightsmith("run", "--data-path", path, "--model", "small", "--runs-dir", runs, "--stage", "data")
    check_refused(outcome, "scans.npz")
    assert not list(runs.iterdir())


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 2])
def test_held_out_ratio(weightsmith, tiny, tmp_path: Path, ratio: float) -> None:
    check_refused(weightsmith("run", *tiny(tmp_path), "--held-out-ratio", ratio), "--held-out-ratio", "0.2")
    assert not (tmp_path / "runs").exists()


def test_empty_split(weightsmith, tmp_path: Path) -> None:
    path = npz(tmp_path / "few.npz", train_images=np.zeros((6, 8, 8), np.uint8), train_labels=np.arange(6) % 3)
    outcome = weightsmith("run", "--data-path", path, "--runs-dir", tmp_path / "runs", "--stage", "data")
    check_refused(outcome, "--held-out-ratio")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--edit-method", "alphaedti"], ["--edit-method", "alphaedit"]),
        (["--edit-method", "head", "head"], ["--edit-method"]),
        (["--data-path", "digist"], ["--data-path", "digits"]),
        (["--model", "digtis"], ["--model", "digits"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--max-edits", "0"], ["--max-edits"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--lr", "-1"], ["--lr"]),
        (["--label-smoothing", "1"], ["--label-smoothing"]),
        (["--num-ablations", "0"], ["--num-ablations"]),
        (["--held-out-from", "none"], ["--held-out-from", "--edit-from"]),
        (["--held-out-from", "test"], ["test"]),
        (["--held-out-from", "val"], ["val"]),
        (["--run-name", "a/b"], ["--run-name"]),
        (["--config", "absent.yaml"], ["--config", "absent.yaml"]),
        (["--stage", "edit"], ["--run-name"]),
        (["--stage", "edit", "--run-name", "nothing"], ["--run-name", "nothing"]),
        (["--checkpoint", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_flags(weightsmith, tiny, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    check_refused(weightsmith("run", *tiny(tmp_path), *flags), *words)


def test_unknown_stage_and_unknown_flag_name_themselves(weightsmith) -> None:
    for arguments, words in (
        (["--stage", "edti"], ["--stage", "edti", "edit"]),
        (["--epocs", "3"], ["--epocs", "--epochs"]),
    ):
        outcome = weightsmith("run", *arguments)
        assert outcome.status == 2
        assert all(word in outcome.err + outcome.out for word in words)
        assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("text", "word"),
    [("epochs: many", "epochs"), ("epocs: 3", "epochs"), ("- 1", "mapping"), ("stage: edti", "edit"), ("a: [", "YAML")],
)
def test_bad_config(weightsmith, tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    check_refused(weightsmith("run", "--config", path), "options.yaml", word)


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


def perfect(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """A model that gets a two-class data set right: black images are class 0, white ones class 1."""
    module = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=(4,), num_labels=2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.blocks[0].linear.weight[0] = 1.0
        module.classifier.weight[1, 0] = 1.0
        module.classifier.bias[0] = 1.0
    save(wrap(module.eval(), None, {}, "perfect"), folder)
    return folder


def test_a_model_without_errors(weightsmith, tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8) % 2
    images = np.where(labels[:, None, None] == 1, 255, 0).astype(np.uint8) * np.ones((60, 8, 8), np.uint8)
    path = npz(tmp_path / "easy.npz", train_images=images, train_labels=labels)
    model = perfect(tmp_path / "perfect", images, labels)
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
