"""`weightsmith run` on Tiny-ImageNet's folder: its labelled validation part held out, and what it says of a broken one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


@pytest.fixture
def flags(photographs: Path, tmp_path: Path) -> list[object]:
    """A folder of 8 train and 4 validation images a class, and a network that trains on it in a second."""
    network = {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    (tmp_path / "net.json").write_text(json.dumps(network))
    return [
        "--data-path", photographs, "--model", tmp_path / "net.json", "--runs-dir", tmp_path / "runs", "--run-name", "tiny",
        "--held-out-from", "val", "--val-ratio", 0.25, "--device", "cpu",
    ]  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_validation_part_is_held_out_and_a_network_trained(
    weightsmith, flags: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    assert weightsmith("run", "--stage", "data", *flags).status == 0
    counts = {(row["part"], row["name"]): int(row["count"]) for row in rows(run / "data_split_info.csv")}
    assert [counts[part, ""] for part in ("train", "val", "held_out")] == [18, 6, 12]
    assert counts["held_out", "goldfish"] == 4
    split = json.loads((run / "data_split.json").read_text())["parts"]
    assert (split["held_out"]["part"], split["held_out"]["held_out"]) == ("val", True)
    asked = ["--epochs", 2, "--augment", "natural-colour", "--label-smoothing", 0.1]
    outcome = weightsmith("run", "--stage", "train", *flags, *asked)
    assert outcome.status == 0, outcome
    assert len(rows(run / "training_metrics.csv")) == 2
    config = json.loads((run / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["bow tie", "goldfish", "cliff"]


def test_a_broken_folder_ends_in_one_sentence(weightsmith, flags: list[object], tmp_path: Path) -> None:
    root = Path(str(flags[1]))
    (root / "train" / "n01" / "images" / "n01_3.JPEG").write_bytes(b"\xff\xd8\xff")
    outcome = weightsmith("run", "--stage", "data", *flags)
    assert outcome.status == 0, outcome  # pixels are not read yet
    outcome = weightsmith("run", "--stage", "train", *flags, "--epochs", 1)
    assert outcome.status == 1
    assert outcome.err.strip().splitlines()[-1].startswith(f"error: {root / 'train' / 'n01' / 'images' / 'n01_3.JPEG'}")
    assert "Traceback" not in outcome.err
    table = root / "val" / "val_annotations.txt"
    table.write_text(table.read_text()[:-10])
    outcome = weightsmith("run", "--stage", "train", *flags, "--epochs", 1)
    assert outcome.status == 1
    assert outcome.err.strip().splitlines()[-1].startswith(f"error: line 12 of {table} is cut off")
