"""Corrections from a labelled data set of a new site, and from other parts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import weightsmith as ws


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as another scanner shows them: darker and noisy. Its test part is another third of them."""
    table = load_digits()
    rng = np.random.default_rng(0)
    images = np.clip(table.images * 10 + rng.normal(0, 25, table.images.shape), 0, 255).astype(np.uint8)
    labels = table.target.astype(np.uint8)[:, None]
    path = tmp_path_factory.mktemp("site") / "site.npz"
    np.savez(
        path, train_images=images[:900], train_labels=labels[:900], test_images=images[900:], test_labels=labels[900:]
    )
    return path


def test_stream_and_rest_of_a_new_site(weightsmith, finished: Path, site: Path, tmp_path: Path) -> None:
    flags = ["--data-path", "digits", "--val-ratio", 0.3, "--checkpoint", finished, "--runs-dir", tmp_path / "runs"]
    outcome = weightsmith(
        "run", *flags, "--edit-from", f"{site}:test", "--stream-ratio", 0.5, "--run-name", "site", "--device", "cpu",
        "--edit-method", "alphaedit", "head", "--closed-form", "--max-samples", 3, "--num-ablations", 2,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    run = tmp_path / "runs" / "site"
    totals = {row["part"]: int(row["count"]) for row in rows(run / "data_split_info.csv") if row["class"] == "all"}
    assert totals["stream"] + totals["new_site_held_out"] == 1797 - 900
    with np.load(run / "data_split_indices.npz") as stored:
        stream, rest = set(stored["stream"].tolist()), set(stored["new_site_held_out"].tolist())
    assert not stream & rest
    edited = {int(row["sample"].split("/")[1]) for row in rows(run / "edit_log.csv")}
    assert len(edited) == 30
    assert edited <= stream
    report = rows(run / "evaluation_report.csv")
    assert {row["part"] for row in report} == {"new_site", "held_out"}
    efficacy = [row for row in report if row["measure"] == "efficacy" and row["method"] == "alphaedit"]
    assert all(float(row["after"]) == 1.0 for row in efficacy)
    assert ws.Delta.load(run / "delta.safetensors").base == ws.delta.weights_hash(ws.load(finished))


def test_nothing_else_held_out(weightsmith, finished: Path, site: Path, tmp_path: Path) -> None:
    """A site's file whose train part the model may have seen: `--held-out-from none` holds out the rest of the stream."""
    flags = ["--data-path", site, "--checkpoint", finished, "--runs-dir", tmp_path / "runs", "--run-name", "s"]
    stages = ["--edit-from", f"{site}:test", "--held-out-from", "none", "--no-astra-layers", "--max-edits", 5]
    for stage in ("data", "train", "edit", "eval"):
        outcome = weightsmith("run", "--stage", stage, *flags, *stages)
        assert outcome.status == 0, outcome.err
    assert {row["part"] for row in rows(tmp_path / "runs" / "s" / "evaluation_report.csv")} == {"new_site"}
    parts = json.loads((tmp_path / "runs" / "s" / "data_split.json").read_text())["parts"]
    assert "held_out" not in parts


def test_the_test_part_held_out_and_corrections_from_val(
    weightsmith, finished: Path, site: Path, tmp_path: Path
) -> None:
    flags = ["--data-path", site, "--checkpoint", finished, "--runs-dir", tmp_path / "runs", "--run-name", "p"]
    more = ["--held-out-from", "test", "--edit-from", "val", "--max-edits", 5, "--max-samples", 2, "--num-ablations", 2]
    outcome = weightsmith("run", *flags, *more)
    assert outcome.status == 0, outcome.err
    info = {
        row["part"]: row["count"]
        for row in rows(tmp_path / "runs" / "p" / "data_split_info.csv")
        if row["class"] == "all"
    }
    assert int(info["held_out"]) == 1797 - 900


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--edit-from", "{site}"], ":train"),
        (["--edit-from", "{site}:tset"], "test"),
        (["--edit-from", "{site}:test", "--stream-ratio", 1], "--stream-ratio"),
        (["--edit-from", "{site}:train", "--data-path", "{site}"], "--edit-from"),
        (["--edit-from", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_bad_streams(weightsmith, finished: Path, site: Path, tmp_path: Path, more: list[object], word: str) -> None:
    filled = [str(word).format(site=site) for word in more]
    flags = ["--data-path", "digits", "--checkpoint", finished, "--runs-dir", tmp_path / "runs", "--stage", "data"]
    outcome = weightsmith("run", *flags, *filled)
    assert outcome.status == 1
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert word in errors[0]
