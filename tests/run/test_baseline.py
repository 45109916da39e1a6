"""`weightsmith baseline`: official parts, the test part once at the end."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import weightsmith as ws
from weightsmith.data.images import ImageSet
from weightsmith.measure import predict
from weightsmith.run.correct import baseline as room


def flags(tmp_path: Path, data: Path | str, **more: object) -> list[str]:
    chosen = {
        "data-path": data, "model": "digits", "epochs": 1, "lr": 1e-3, "runs-dir": tmp_path / "runs", "run-name": "b",
        "device": "cpu",
    } | more  # fmt: skip
    return [str(word) for name, value in chosen.items() for word in (f"--{name}", value)]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two classes, dark and bright, in official parts."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 96), ("val", 32), ("test", 48)):
        labels = np.arange(n) % 2
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
        arrays[f"{part}_images"] = (rng.integers(0, 100, (n, 16, 16)) + 150 * labels[:, None, None]).astype(np.uint8)
    path = tmp_path / "scans.npz"
    np.savez(path, **arrays)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_baseline_leaves_its_files_and_true_numbers(weightsmith, tmp_path: Path, scans: Path) -> None:
    outcome = weightsmith("baseline", *flags(tmp_path, scans, epochs=3))
    assert outcome.status == 0, outcome.err
    run = tmp_path / "runs" / "b"
    assert (run / "training_curve.png").exists()
    assert len(rows(run / "baseline_training_history.csv")) == 3
    metrics = {(row["part"], row["metric"]): float(row["value"]) for row in rows(run / "baseline_metrics.csv")}
    model, source = ws.load(run), ws.data.medmnist(scans)
    for part in ("val", "test"):
        assert metrics[part, "accuracy"] == pytest.approx(predict(model, source.part(part)).accuracy, abs=1e-6)
    totals = {row["part"]: int(row["count"]) for row in rows(run / "data_split_info.csv") if row["class"] == "all"}
    assert totals == {"train": 96, "val": 32, "test": 48}
    classes = rows(run / "baseline_class_metrics.csv")
    assert [(row["part"], row["label"], row["n"]) for row in classes] == [
        ("val", "0", "16"), ("val", "1", "16"), ("test", "0", "24"), ("test", "1", "24"),
    ]  # fmt: skip
    counts = [row for row in rows(run / "confusion_matrix.csv") if row["part"] == "test"]
    right = sum(int(row["count"]) for row in counts if row["true"] == row["predicted"])
    assert right / 48 == pytest.approx(metrics["test", "accuracy"], abs=1e-6)
    assert f"the page to read is {run / 'report.html'}" in outcome.out + outcome.err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 4
    assert f"Test part: {100 * metrics['test', 'accuracy']:.1f}%" in page


def test_the_test_part_is_read_after_the_training_only(
    weightsmith, tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fit, real_classify = room.fit, room.classify
    monkeypatch.setattr(room, "fit", lambda *a, **k: (order.append("fit"), real_fit(*a, **k))[1])
    monkeypatch.setattr(room, "classify", lambda *a, **k: (order.append(k["title"]), real_classify(*a, **k))[1])
    real_pixels = ImageSet.pixels
    seen: list[tuple[str, int]] = []

    def pixels(self: ImageSet, which: object = None) -> object:
        seen.append((self.part, len(order)))
        return real_pixels(self, which)

    monkeypatch.setattr(ImageSet, "pixels", pixels)
    assert weightsmith("baseline", *flags(tmp_path, scans)).status == 0
    assert order == ["fit", "val", "test"]
    assert {when for part, when in seen if part == "test"} == {3}


def test_an_accuracy_too_good_to_be_true_is_told(weightsmith, tmp_path: Path, scans: Path) -> None:
    outcome = weightsmith("baseline", *flags(tmp_path, scans, epochs=8))
    assert outcome.status == 0
    accuracy = ws.load(tmp_path / "runs" / "b")
    if predict(accuracy, ws.data.medmnist(scans).part("test")).accuracy > 0.98:
        assert "test accuracy is" in outcome.err
        assert "shared between the parts" in outcome.err
    else:
        pytest.fail("the two classes are told apart by brightness alone, and this training did not learn it")


def test_data_dir_is_where_pathmnist_lies(weightsmith, tmp_path: Path) -> None:
    outcome = weightsmith("baseline", "--data-dir", tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")
    assert outcome.status == 1
    assert str(tmp_path / "nowhere" / "pathmnist_224.npz") in outcome.err
    assert "weightsmith download" in outcome.err
    both = weightsmith("baseline", "--data-dir", tmp_path, "--data-path", "digits")
    assert both.status == 1
    assert "--data-path" in both.err


def test_a_baseline_is_not_replaced_unasked_and_feeds_a_run(weightsmith, tmp_path: Path, scans: Path) -> None:
    assert weightsmith("baseline", *flags(tmp_path, scans)).status == 0
    before = (tmp_path / "runs" / "b" / "baseline_metrics.csv").read_bytes()
    again = weightsmith("baseline", *flags(tmp_path, scans))
    assert again.status == 1
    assert "--resume" in again.err
    assert weightsmith("baseline", *flags(tmp_path, scans), "--overwrite").status == 0
    assert (tmp_path / "runs" / "b" / "baseline_metrics.csv").read_bytes() == before
    outcome = weightsmith(
        "run", "--data-path", scans, "--checkpoint", tmp_path / "runs" / "b", "--runs-dir", tmp_path / "runs",
        "--run-name", "r",
    )  # fmt: skip
    assert outcome.status == 1  # a fifth of what the baseline was trained on would be held out
    assert "--held-out-from test" in outcome.err
