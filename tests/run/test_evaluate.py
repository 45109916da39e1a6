"""`weightsmith evaluate`: classifiers side by side on the same held-out images, kept, gone on with, refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from tests.run.conftest import assert_refused
from weightsmith.data.sources import digits
from weightsmith.data.split import manifest
from weightsmith.evaluate import Classification, accuracy_change, answers_of
from weightsmith.files import write_json
from weightsmith.measure import Cost
from weightsmith.models import Model, create, load, save
from weightsmith.run.evaluate import evaluation, measured
from weightsmith.run.job import save_indices

NAMES = tuple(str(digit) for digit in range(10))
FILES = (
    "evaluation_results.png",
    "evaluation_metrics.json",
    "evaluation_metrics.csv",
    "class_accuracy.csv",
    "report.html",
)


def small(folder: Path, width: int, seed: int = 0, classes: tuple[str, ...] = NAMES, side: int = 8) -> Model:
    entries = {
        "model_type": "vit", "image_size": side, "patch_size": 4, "hidden_size": width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 2 * width, "initializer_range": 0.3,
    }  # fmt: skip
    path = folder / f"vit-{width}.json"
    path.write_text(json.dumps(entries))
    return create(str(path), classes, seed, channels=1)


def run_of(model: Model, folder: Path, seed: int | None = 42) -> Path:
    """A run folder with a model, and with the record of a split where there is a seed."""
    save(model, folder / "model")
    if seed is not None:
        split = digits().split(0.2, seed)
        save_indices(folder, split.parts())
        write_json(folder / "data_split.json", split.manifest())
    return folder


@pytest.fixture(scope="session")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small untrained classifiers of one split, one that does not say, and what is none; do not write into it."""
    folder = tmp_path_factory.mktemp("rivals")
    run_of(small(folder, 16), folder / "runs" / "large")
    run_of(small(folder, 8, seed=1), folder / "runs" / "small")
    return folder


def flags(folder: Path, *more: object) -> list[object]:
    return ["evaluate", "--data-path", "digits", "--output-dir", folder, "--device", "cpu", "--rounds", 6, *more]


@pytest.fixture(scope="session")
def evaluated(rivals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of both; do not write into it."""
    from weightsmith import cli

    folder = tmp_path_factory.mktemp("evaluated") / "e"
    models = [rivals / "runs" / "small", rivals / "runs" / "large"]
    cli.main([str(word) for word in flags(folder, "--model-paths", *models, "--baseline", models[1])])
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "evaluation_metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)  # type: ignore[no-any-return]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "evaluation_metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what an evaluation leaves --------------------------------------------------------------------------------------


def test_a_run_is_one_folder(evaluated: Path) -> None:
    assert all((evaluated / name).stat().st_size for name in (*FILES, "config.yaml", "env.json", "log.txt"))
    pixels = imread(evaluated / "evaluation_results.png")[..., :3]
    assert min(pixels.shape[:2]) > 500
    assert 0.01 < (pixels.min(-1) < 0.9).mean() < 0.5
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' not in page  # it draws its charts itself
    for title in ("Accuracy against multiplications", "Accuracy by confidence", "Time by images in a batch"):
        assert f">{title}</p>" in page
    assert "https://" not in page
    assert "Fastest within the tolerance" in page
    assert not list(evaluated.rglob("*.tmp"))


def test_the_numbers_are_what_one_measures_by_hand(evaluated: Path, rivals: Path) -> None:
    metrics = metrics_of(evaluated)
    images = digits().split(0.2, 42).held_out
    assert metrics["data"] == {"path": "digits", "part": "train", "images": len(images), "sha256": images.digest()}
    assert [one["name"] for one in metrics["models"]] == ["small", "large"]
    seen = {name: answers_of(load(rivals / "runs" / name), images) for name in ("small", "large")}
    for entry, row in zip(metrics["models"], rows_of(evaluated), strict=True):
        name, mine = entry["name"], Classification.of(seen[entry["name"]])
        assert row["model"] == name
        measures = entry["measures"]
        assert measures["accuracy"] == {k: pytest.approx(v) for k, v in vars(mine.accuracy).items()}
        assert measures["top5"]["value"] == mine.top5.value
        assert measures["macro_f1"]["low"] == pytest.approx(mine.macro["f1"].low)
        assert float(row["accuracy"]) == pytest.approx(mine.accuracy.value, abs=1e-6)
        assert float(row["top5_high"]) == pytest.approx(mine.top5.high, abs=1e-6)
        assert [one["value"] for one in entry["class_accuracy"].values()] == [one.value for one in mine.class_accuracy]
        assert entry["confusion"] == mine.confusion.tolist()
        cost = Cost.of(load(rivals / "runs" / name))
        assert (entry["parameters"], entry["macs"], entry["flops"]) == (cost.parameters, cost.macs, cost.flops)
        assert entry["bytes_on_disk"] == (rivals / "runs" / name / "model" / "model.safetensors").stat().st_size
        for size in ("1", "8", "64"):
            times = entry["latency"][size]
            assert times["quartiles"][0] <= times["milliseconds"]["value"] <= times["quartiles"][1]
            assert times["images_per_second"] == pytest.approx(1000 * int(size) / times["milliseconds"]["value"])
    expected = accuracy_change(seen["large"], seen["small"])
    assert metrics["models"][0]["measures"]["accuracy_change"]["value"] == pytest.approx(expected.value)
    assert metrics["models"][0]["measures"]["accuracy_change"]["low"] == pytest.approx(expected.low)
    assert metrics["models"][1]["measures"]["accuracy_change"]["value"] == 0
    assert metrics["baseline"] == "large"


def test_the_control_is_the_baseline_again(evaluated: Path) -> None:
    metrics = metrics_of(evaluated)
    assert set(metrics["latency_control"]) == {"1", "8", "64"}
    for size, control in metrics["latency_control"].items():
        base = metrics["models"][1]["latency"][size]
        assert base["ratio_to_baseline"]["value"] == 1
        assert control["milliseconds"]["value"] != base["milliseconds"]["value"]
        assert control["milliseconds"]["n"] == 6
    assert metrics["threads"] == torch.get_num_threads()


def test_recommendations_name_models_and_why(evaluated: Path) -> None:
    metrics = metrics_of(evaluated)
    accuracy = {one["name"]: one["measures"]["accuracy"]["value"] for one in metrics["models"]}
    best, fast, efficient = metrics["recommendations"]
    assert best["model"] == max(accuracy, key=accuracy.__getitem__)
    assert accuracy[fast["model"]] >= accuracy["large"] - 0.01
    efficiency = {one["name"]: one["measures"]["efficiency"]["value"] for one in metrics["models"]}
    assert efficient["model"] == max(efficiency, key=efficiency.__getitem__)
    assert set(metrics["pareto_front"]) == {one["name"] for one in metrics["models"] if one["pareto"]}


def test_the_terminal_shows_table_and_recommendations(weightsmith, rivals: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*flags(tmp_path / "e", "--model-paths", rivals / "runs" / "small"))
    assert outcome.status == 0, outcome.err
    for words in ("Held-out images", "small", "Best accuracy:", "there is no other model", str(tmp_path / "e")):
        assert words in outcome.out


# --- gone on with, redone -------------------------------------------------------------------------------------------


def test_what_is_measured_is_not_measured_again(
    weightsmith, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(evaluated, tmp_path / "e"))
    before = metrics_of(copy)
    for name in FILES:
        (copy / name).unlink()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is measured already")

    with monkeypatch.context() as patched:
        patched.setattr(measured, "answers_of", never)
        patched.setattr(measured, "latencies", never)
        # Nothing but the place is needed to go on.
        outcome = weightsmith("evaluate", "--output-dir", copy, "--resume")
    assert outcome.status == 0, outcome.err
    assert metrics_of(copy) == before


def test_a_damaged_file_is_measured_again(weightsmith, evaluated: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(evaluated, tmp_path / "e"))
    before = metrics_of(copy)
    kept = sorted((copy / "cells").glob("*.safetensors"))
    kept[0].write_bytes(b"damaged")
    (copy / "cells" / "times.json").write_text("{")
    outcome = weightsmith("evaluate", "--runs-dir", tmp_path, "--run-name", "e", "--resume")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("is damaged and measured again") == 2
    after = metrics_of(copy)
    assert [one["measures"]["accuracy"] for one in after["models"]] == [
        one["measures"]["accuracy"] for one in before["models"]
    ]
    assert after["latency_control"] != before["latency_control"]


def test_an_existing_run_is_not_overwritten_unasked(
    weightsmith, rivals: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(evaluated, tmp_path / "e"))
    given = flags(copy, "--model-paths", rivals / "runs" / "small")
    assert_refused(weightsmith(*given), ["exists", "--resume", "--overwrite"])
    assert_refused(weightsmith(*given, "--resume"), ["measured with other options", "--model-paths"])

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "timed", fails)
        with pytest.raises(RuntimeError, match="in the middle"):
            weightsmith(*given, "--overwrite")
    assert metrics_of(copy) == metrics_of(evaluated)  # the old results are back
    assert weightsmith(*given, "--overwrite").status == 0
    assert [one["name"] for one in metrics_of(copy)["models"]] == ["small"]


# --- which models, which images -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch size is timed enough where times do not matter."""
    monkeypatch.setattr(measured, "latencies", lambda models, *_, **__: of_no_time(models))


def of_no_time(models: dict[str, Model]) -> dict[str, dict[int, Any]]:
    from weightsmith.measure import Latency

    return {name: {size: Latency(size, np.full(6, 2.0)) for size in (1, 8, 64)} for name in models}


def test_models_are_found_below_a_folder(weightsmith, quick: None, rivals: Path, talker: Path, tmp_path: Path) -> None:
    root = tmp_path / "all"
    shutil.copytree(rivals / "runs", root / "runs")
    shutil.copytree(rivals / "runs" / "small", root / "more" / "small")
    shutil.copytree(talker / "model", root / "talker")
    save(small(tmp_path, 8, classes=("a", "b")), root / "two classes")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    outcome = weightsmith(*flags(tmp_path / "e", "--auto-find", root, "--baseline", "large"))
    assert outcome.status == 0, outcome.err
    metrics = metrics_of(tmp_path / "e")
    assert [one["name"] for one in metrics["models"]] == ["more/small", "large", "runs/small"]
    assert metrics["baseline"] == "large"
    told = "\n".join(metrics["notes"])
    for words in ("talker", "broken", "two classes has 2 classes", "are the same network with the same weights"):
        assert words in told
    assert "Left out" in (tmp_path / "e" / "report.html").read_text(encoding="utf-8")


def test_the_first_that_fits_the_data_is_the_baseline(weightsmith, quick: None, rivals: Path, tmp_path: Path) -> None:
    save(small(tmp_path, 8, classes=("a", "b")), tmp_path / "all" / "a")
    shutil.copytree(rivals / "runs", tmp_path / "all" / "runs")
    outcome = weightsmith(*flags(tmp_path / "e", "--auto-find", tmp_path / "all"))
    assert outcome.status == 0, outcome.err
    assert metrics_of(tmp_path / "e")["baseline"] == "large"


def test_a_baseline_joins_the_models(weightsmith, quick: None, rivals: Path, tmp_path: Path) -> None:
    models = ["--model-paths", rivals / "runs" / "small", "--baseline", rivals / "runs" / "large" / "model"]
    outcome = weightsmith(*flags(tmp_path / "e", *models))
    assert outcome.status == 0, outcome.err
    metrics = metrics_of(tmp_path / "e")
    assert [one["name"] for one in metrics["models"]] == ["large", "small"]
    assert metrics["baseline"] == "large"


def test_a_model_that_does_not_say_what_it_has_seen(weightsmith, quick: None, rivals: Path, tmp_path: Path) -> None:
    """It is measured on what the others hold out, and the page says what that is worth."""
    run_of(small(tmp_path, 8, seed=3), tmp_path / "silent", seed=None)
    models = ["--model-paths", tmp_path / "silent", rivals / "runs" / "large"]
    assert weightsmith(*flags(tmp_path / "e", *models)).status == 0
    metrics = metrics_of(tmp_path / "e")
    assert metrics["data"]["sha256"] == digits().split(0.2, 42).held_out.digest()
    assert metrics["notes"] == [
        "What silent was trained on is not recorded, so nobody can tell whether it has seen these images."
    ]


def test_different_splits_are_not_compared(weightsmith, rivals: Path, tmp_path: Path) -> None:
    run_of(small(tmp_path, 8), tmp_path / "other", seed=7)
    models = ["--model-paths", tmp_path / "other", rivals / "runs" / "large"]
    outcome = weightsmith(*flags(tmp_path / "e", *models))
    assert_refused(outcome, ["other and large hold out different images"])
    assert not (tmp_path / "e").exists()


def test_the_test_part_of_a_file(weightsmith, quick: None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 40), ("val", 20), ("test", 24)):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 4)[:, None]
    np.savez(tmp_path / "file.npz", **arrays)
    save(small(tmp_path, 8, classes=tuple("abcd")), tmp_path / "one")
    given = ["evaluate", "--data-path", tmp_path / "file.npz", "--model-paths", tmp_path / "one", "--device", "cpu"]
    for part, count in (("auto", 24), ("val", 20)):
        outcome = weightsmith(
            *given, "--part", part, "--output-dir", tmp_path / part, "--cache-dir", tmp_path / "cache"
        )
        assert outcome.status == 0, outcome.err
        metrics = metrics_of(tmp_path / part)
        assert metrics["data"]["images"] == count
        assert metrics["models"][0]["measures"]["top5"]["value"] is None
        assert any("top-5 accuracy says nothing" in note for note in metrics["notes"])


def test_a_part_that_is_not_there(weightsmith, rivals: Path, tmp_path: Path) -> None:
    outcome = weightsmith(*flags(tmp_path / "e", "--model-paths", rivals / "runs" / "small", "--part", "test"))
    assert_refused(outcome, ["digits has no part 'test'"])


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_that_a_model_has_learned_from(
    weightsmith, quick: None, rivals: Path, tmp_path: Path, part: str
) -> None:
    """One that held nothing out, and learned from what another holds out or was chosen by it."""
    folder = run_of(small(tmp_path, 8, seed=3), tmp_path / "greedy", seed=None)
    held_out = digits().split(0.2, 42).held_out
    greedy = dataclasses.replace(held_out, sealed=False)
    save_indices(folder, {part: greedy})
    write_json(folder / "data_split.json", {"parts": manifest({part: greedy})})
    outcome = weightsmith(*flags(tmp_path / "e", "--model-paths", rivals / "runs" / "small", folder))
    if part == "train":
        assert_refused(
            outcome, [f"greedy has learned from {len(held_out)} of the {len(held_out)} images", "leave it out"]
        )
    else:
        assert outcome.status == 0, outcome.err
        assert f"greedy was chosen on {len(held_out)} of these images" in metrics_of(tmp_path / "e")["notes"][0]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--model-paths", "{runs}/small", "{two}"], ["has 10 classes and two 2"]),
        (["--model-paths", "{two}"], ["two has 2 classes and --data-path digits 10"]),
        (["--model-paths", "{runs}/small", "{turned}"], ["same classes in another order"]),
        (["--auto-find", "{empty}"], ["--auto-find", "no image classifier below it"]),
        (["--auto-find", "{two}"], ["no model below --auto-find", "10 classes"]),
        (["--auto-find", "{mixed}", "--baseline", "a"], ["--baseline a has other classes", "digits"]),
    ],
)
def test_bad_flags(weightsmith, rivals: Path, talker: Path, tmp_path: Path, given: list[str], words: list[str]) -> None:
    if "{two}" in given:
        save(small(tmp_path, 8, classes=("a", "b")), tmp_path / "two")
    if "{turned}" in given:
        save(small(tmp_path, 8, classes=NAMES[::-1]), tmp_path / "turned")
    if "{mixed}" in given:
        save(small(tmp_path, 8, classes=("a", "b")), tmp_path / "mixed" / "a")
        shutil.copytree(rivals / "runs" / "small", tmp_path / "mixed" / "b")
    (tmp_path / "empty").mkdir()
    places = {"runs": rivals / "runs", "talker": talker / "model", "two": tmp_path / "two", "empty": tmp_path / "empty"}
    filled = [word.format(**places, turned=tmp_path / "turned", mixed=tmp_path / "mixed") for word in given]
    assert_refused(weightsmith(*flags(tmp_path / "e", *filled)), words)
    assert not (tmp_path / "e").exists()


def test_a_folder_of_somebody_else_is_left_alone(weightsmith, rivals: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    outcome = weightsmith(*flags(tmp_path, "--model-paths", rivals / "runs" / "small"))
    assert_refused(outcome, ["--output-dir", "holds other files"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
