"""`weightsmith artificial`: tables, base, fine-tuning and sweep on tables that train in seconds; and a pair of one's own."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith as ws
from weightsmith import cli
from weightsmith.data import artificial as presets
from weightsmith.data.artificial import ArtificialTask
from weightsmith.data.tables import write_table
from weightsmith.models.heads import backbone_names, head_names
from weightsmith.run.artificial import sweep as sweep_room
from weightsmith.train.images import ImageTraining

from .conftest import assert_refused

SMALL = {
    "n_samples": 150, "n_features": 16, "n_classes": 3, "n_informative": 6, "n_clusters_per_class": 1, "class_sep": 3.0,
}  # fmt: skip
FIRST = ArtificialTask(**SMALL, seed=1)
SECOND = ArtificialTask(**SMALL | {"n_classes": 4, "n_samples": 160}, seed=2)


def flags(runs: Path, **more: object) -> list[str]:
    chosen = {"epochs": 4, "batch-size": 16, "runs-dir": runs, "run-name": "a", "device": "cpu"} | more
    words: list[str] = []
    for name, value in chosen.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_tables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(presets.PRESETS, "plain", (FIRST, SECOND))
        yield


@pytest.fixture(scope="module")
def swept(small_tables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write into it, copy it with `copied`."""
    runs = tmp_path_factory.mktemp("artificial")
    cli.main(["artificial", *flags(runs, coefficients=(0, 0.5, 0.9))])
    return runs / "a"


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "runs" / "a"))


def test_a_run_leaves_data_networks_and_a_sweep_with_true_numbers(swept: Path) -> None:
    table = rows(swept / "sweep.csv")
    assert len(table) == 4 * 2 * 3 * 2  # operations, modes, coefficients, data sets
    assert (swept / "figures" / "sweep.png").stat().st_size > 5000
    page = (swept / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 4 * 2 + 2 * 2  # an operation and data set each; two trainings
    assert "Validation chose " in page
    source = ws.data.tables.open_table(swept / "data" / "dataset2.csv")
    features, labels = SECOND.make()
    assert np.array_equal(source.part("train").pixels().numpy()[:, :, 0, 0], features)
    assert np.array_equal(source.part("train").labels, labels)
    fine = ws.load(swept / "finetuned")
    split = source.split(0.2, 42)
    [reference] = [
        row for row in rows(swept / "references.csv") if (row["backbone"], row["data"]) == ("finetuned", "dataset2")
    ]
    assert float(reference["val_accuracy"]) == pytest.approx(ws.predict(fine, split.val).accuracy, abs=1e-6)
    seen = ws.evaluate.classify(fine, split.held_out).accuracy
    assert float(reference["test_accuracy"]) == pytest.approx(seen.value, abs=1e-6)
    assert float(reference["test_low"]) == pytest.approx(seen.low, abs=1e-6)


def test_the_card_of_a_network_loads_it(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (swept / "base" / "README.md").read_text()
    assert "rows of 16 numbers" in card
    assert "Image.open" not in card
    found: dict[str, list[int]] = {}
    monkeypatch.chdir(swept / "base")
    exec(card.split("```python")[1].split("```")[0], found)
    assert len(found["labels"]) == 4


def test_coefficient_0_is_the_base_and_a_point_is_what_the_vector_gives(swept: Path) -> None:
    table, references = rows(swept / "sweep.csv"), rows(swept / "references.csv")
    for data in ("dataset1", "dataset2"):
        at_zero = {row["test_accuracy"] for row in table if (row["coefficient"], row["data"]) == ("0.0", data)}
        [base] = [row for row in references if (row["backbone"], row["data"]) == ("base", data)]
        assert at_zero == {base["test_accuracy"]}
    base, fine = ws.load(swept / "base"), ws.load(swept / "finetuned")
    heads = {*head_names(base), *head_names(fine)}
    vector = ws.TaskVector(base, fine, "multiply", "anchored", without=heads)
    split = ws.data.tables.open_table(swept / "data" / "dataset1.csv").split(0.2, 42)
    with vector.on(base, 0.9):
        accuracy = ws.predict(base, split.val).accuracy
    [point] = [
        row
        for row in table
        if (row["operation"], row["mode"], row["coefficient"], row["data"])
        == ("multiply", "anchored", "0.9", "dataset1")
    ]
    assert float(point["val_accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_the_coefficient_is_chosen_on_validation_data_alone(swept: Path) -> None:
    table = rows(swept / "sweep.csv")
    for chosen in rows(swept / "choices.csv"):
        mine = [row for row in table if (row["operation"], row["mode"]) == (chosen["operation"], chosen["mode"])]
        scores: dict[float, float] = {}
        for row in mine:
            scores[float(row["coefficient"])] = (
                scores.get(float(row["coefficient"]), 0) + float(row["val_accuracy"]) / 2
            )
        assert scores[float(chosen["coefficient"])] == pytest.approx(max(scores.values()))
        for row in mine:
            if float(row["coefficient"]) == float(chosen["coefficient"]):
                assert chosen[f"test_{row['data']}"] == row["test_accuracy"]


def test_backbone_and_head_are_saved_apart_and_make_the_model(swept: Path) -> None:
    whole = ws.load(swept / "base")
    backbone, head = load_file(swept / "base" / "backbone.safetensors"), load_file(swept / "base" / "head.safetensors")
    assert set(backbone) == set(backbone_names(whole))
    assert set(head) == set(head_names(whole))
    assert {name.rpartition(".")[0] for name in head} == {"blocks.10.linear", "blocks.11.linear", "classifier"}
    shapes = [tuple(backbone[f"blocks.{layer}.linear.weight"].shape) for layer in range(10)]
    assert shapes == [(16, 16)] * 5 + [(8, 16)] + [(8, 8)] * 4
    for name, tensor in (backbone | head).items():
        assert torch.equal(tensor, whole.module.state_dict()[name])


def test_stages_one_by_one_come_to_the_same(weightsmith, small_tables: None, swept: Path, tmp_path: Path) -> None:
    for stage in ("data", "base", "finetune"):
        more = {"epochs": 4, "batch-size": 16} if stage == "data" else {}
        words = flags(tmp_path, stage=stage) if more else ["--stage", stage, "--runs-dir", tmp_path, "--run-name", "a"]
        outcome = weightsmith("artificial", *words)
        assert outcome.status == 0, outcome.err
    words = ["--stage", "sweep", "--runs-dir", tmp_path, "--run-name", "a", "--coefficients", 0, 0.5, 0.9]
    outcome = weightsmith("artificial", *words)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "a" / "sweep.csv").read_bytes() == (swept / "sweep.csv").read_bytes()
    assert "0.9" not in outcome.err


def test_a_resumed_sweep_measures_only_what_is_missing(
    weightsmith, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copied / "sweep.csv").read_bytes()
    (copied / "cells" / "add-raw-0.5.json").unlink()
    (copied / "cells" / "divide-raw-0.9.json").write_text("{")
    count = []
    real = sweep_room.judge
    monkeypatch.setattr(sweep_room, "judge", lambda one: count.append(one.name) or real(one))
    outcome = weightsmith("artificial", "--resume", "--run-name", "a", "--runs-dir", copied.parent)
    assert outcome.status == 0, outcome.err
    assert len(count) == 2 * 2 + 4  # two cells and the references, each on two data sets
    assert (copied / "sweep.csv").read_bytes() == before


def test_a_frozen_backbone_has_a_zero_vector(weightsmith, small_tables: None, tmp_path: Path) -> None:
    words = [*flags(tmp_path, epochs=1, operations=("subtract",), coefficients=(0, 0.9)), "--freeze-backbone"]
    assert weightsmith("artificial", *words).status == 0
    base, fine = (load_file(tmp_path / "a" / name / "backbone.safetensors") for name in ("base", "finetuned"))
    assert all(torch.equal(base[name], fine[name]) for name in base)
    record = json.loads((tmp_path / "a" / "sweep.json").read_text())
    assert record["vectors"]["subtract, raw"]["distance"] == 0
    assert any("--freeze-backbone" in note for note in record["notes"])


def test_a_base_that_is_there_is_taken(weightsmith, small_tables: None, swept: Path, tmp_path: Path) -> None:
    more = {"base-model": swept / "base", "stage": "full", "operations": ("subtract",), "coefficients": (0, 1)}
    assert weightsmith("artificial", *flags(tmp_path, epochs=1, **more)).status == 0
    ours, theirs = (load_file(path / "base" / "model.safetensors") for path in (tmp_path / "a", swept))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pair_of_ones_own(weightsmith, swept: Path, tmp_path: Path) -> None:
    words = {
        "pretrained": swept / "base", "finetuned": swept / "finetuned", "data-path": swept / "data" / "dataset2.csv",
        "pretrained-data-path": swept / "data" / "dataset1.csv", "coefficients": (0, 0.5, 0.9),
    }  # fmt: skip
    outcome = weightsmith("artificial", *flags(tmp_path, **words))
    assert outcome.status == 0, outcome.err
    names = ("operation", "mode", "coefficient", "data", "val_accuracy", "test_accuracy")
    ours, theirs = (
        [[row[name] for name in names] for row in rows(run / "sweep.csv")] for run in (tmp_path / "a", swept)
    )
    assert ours == theirs


def test_a_pair_of_image_classifiers(weightsmith, finished: Path, tmp_path: Path) -> None:
    """The edited model of a run is near the one that it was edited from; both were made by other commands."""
    words = {
        "pretrained": finished / "model", "finetuned": finished / "edited", "data-path": "digits", "modes": ("anchored",),
        "coefficients": (0, 1), "operations": ("subtract", "add"),
    }  # fmt: skip
    outcome = weightsmith("artificial", *flags(tmp_path, **words))
    assert outcome.status == 0, outcome.err
    found = {(row["operation"], row["coefficient"]): row["test_accuracy"] for row in rows(tmp_path / "a" / "sweep.csv")}
    reference = {row["backbone"]: row["test_accuracy"] for row in rows(tmp_path / "a" / "references.csv")}
    assert found["subtract", "0.0"] == reference["base"]
    assert found["subtract", "1.0"] == reference["finetuned"]


def test_a_table_that_is_missing_or_of_another_width(weightsmith, small_tables: None, tmp_path: Path) -> None:
    assert_refused(weightsmith("artificial", *flags(tmp_path, **{"base-data": tmp_path / "none.csv"})), ["none.csv"])
    narrow = tmp_path / "narrow.csv"
    write_table(narrow, np.zeros((40, 5), np.float32), np.arange(40) % 2)
    outcome = weightsmith("artificial", *flags(tmp_path, **{"base-data": narrow}))
    assert_refused(outcome, ["5 and 16 features", "--base-data"])


def test_a_base_that_does_not_fit_is_refused(weightsmith, small_tables: None, swept: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, words in (
        (empty, ["--base-model"]),
        (tmp_path / "none", ["--base-model"]),
    ):
        assert_refused(weightsmith("artificial", *flags(tmp_path, **{"base-model": path})), words)
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
    other = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.ones(3)}, other)
    outcome = weightsmith("artificial", *flags(tmp_path, **{"base-model": other}))
    assert_refused(outcome, ["matches no layer", "blocks.0.linear.weight"])
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    wide = tmp_path / "wide.csv"
    features = np.random.default_rng(0).normal(size=(60, 24)).astype(np.float32)
    write_table(wide, features, np.arange(60) % 3)
    outcome = weightsmith(
        "artificial", *flags(tmp_path, **{"base-data": wide, "finetune-data": wide, "base-model": swept / "base"})
    )
    assert_refused(outcome, ["24x24", "16x16"])


def test_what_is_there_is_not_mixed_with_other_options(weightsmith, copied: Path) -> None:
    words = ["--run-name", "a", "--runs-dir", copied.parent]
    assert_refused(weightsmith("artificial", *words), ["--resume"])
    assert_refused(weightsmith("artificial", *words, "--resume", "--lr", 0.01), ["--lr", "--overwrite"])
    (copied / "data" / "dataset1.csv").write_text((copied / "data" / "dataset2.csv").read_text())
    assert_refused(weightsmith("artificial", *words, "--stage", "sweep"), ["dataset1", "changed"])


def test_a_stage_is_made_anew_and_what_depends_on_it_goes(weightsmith, copied: Path) -> None:
    base, fine = ((copied / name / "model.safetensors").read_bytes() for name in ("base", "finetuned"))
    words = ["--stage", "finetune", "--run-name", "a", "--runs-dir", copied.parent, "--finetune-lr", 0.003]
    assert_refused(weightsmith("artificial", *words), ["--finetune-lr", "--overwrite"])
    outcome = weightsmith("artificial", *words, "--overwrite")
    assert outcome.status == 0, outcome.err
    assert (copied / "base" / "model.safetensors").read_bytes() == base
    assert (copied / "finetuned" / "model.safetensors").read_bytes() != fine
    assert not (copied / "sweep.csv").exists()
    assert not (copied / "cells").exists()


def test_a_training_that_was_stopped_goes_on_to_the_same(
    weightsmith, small_tables: None, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = ImageTraining._forward, []

    def stopped(self: ImageTraining, epoch: int, step: int) -> object:
        seen.append(epoch)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return real(self, epoch, step)

    monkeypatch.setattr(ImageTraining, "_forward", stopped)
    assert weightsmith("artificial", *flags(tmp_path, coefficients=(0, 0.5, 0.9))).status == 130
    assert not (tmp_path / "a" / "base").exists()
    monkeypatch.undo()
    outcome = weightsmith("artificial", "--resume", "--run-name", "a", "--runs-dir", tmp_path)
    assert outcome.status == 0, outcome.err
    for file in ("base/model.safetensors", "finetuned/model.safetensors", "sweep.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (swept / file).read_bytes()


def test_stages_need_what_comes_before(weightsmith, small_tables: None, tmp_path: Path) -> None:
    assert_refused(weightsmith("artificial", "--stage", "base", "--runs-dir", tmp_path), ["--run-name"])
    assert_refused(weightsmith("artificial", *flags(tmp_path, stage="sweep")), ["--stage data"])
    assert weightsmith("artificial", *flags(tmp_path, stage="data")).status == 0
    assert_refused(weightsmith("artificial", *flags(tmp_path, stage="finetune")), ["--stage base"])
    assert_refused(weightsmith("artificial", *flags(tmp_path, stage="sweep")), ["--stage base"])


def test_pairs_that_are_none(weightsmith, swept: Path, finished: Path, tmp_path: Path) -> None:
    data = swept / "data" / "dataset2.csv"
    words = {"pretrained": finished / "model", "finetuned": swept / "finetuned", "data-path": data}
    assert_refused(weightsmith("artificial", *flags(tmp_path, **words)), ["no pair"])
    words = {
        "pretrained": swept / "base",
        "finetuned": swept / "finetuned",
        "data-path": swept / "data" / "dataset1.csv",
    }
    assert_refused(weightsmith("artificial", *flags(tmp_path, **words)), ["3 classes", "--data-path"])
    words = {"pretrained": tmp_path / "no", "finetuned": swept / "finetuned", "data-path": data}
    assert_refused(weightsmith("artificial", *flags(tmp_path, **words)), ["--pretrained"])
