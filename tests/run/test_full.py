"""The whole job on the digits, and what it leaves behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification

import weightsmith as ws
from weightsmith.delta import weights_hash
from weightsmith.errors import HeldOutError
from weightsmith.evaluate import load_examples
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import Job
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.options.files import read_yaml


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_named_file_is_there(finished: Path) -> None:
    for name in (
        "config.yaml", "env.json", "events.jsonl", "log.txt", "report.html", "delta.safetensors", "delta_head.safetensors",
        "data_split_info.csv", "data_split.json", "training_metrics.csv", "layer_importance.csv",
        "layer_statistics.csv", "edit_log.csv", "head_edit_log.csv", "evaluation_report.csv", "confusion_matrix.csv",
        "confusion_matrix.png", "predictions.csv", "model/config.json", "edited/model.safetensors", "edited/README.md",
        "figures/training_curve.png", "figures/layer_importance.png", "checkpoints/checkpoint.pt",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.tmp"))


def test_split_counts_add_up_and_parts_are_apart(finished: Path) -> None:
    info = rows(finished / "data_split_info.csv")
    totals = {row["part"]: int(row["count"]) for row in info if row["class"] == "all"}
    assert sum(totals.values()) == 1797
    assert totals["held_out"] == int(0.2 * 1797)
    for part, total in totals.items():
        assert sum(int(row["count"]) for row in info if row["part"] == part and row["class"] != "all") == total
    with np.load(finished / "data_split_indices.npz") as stored:
        held = set(stored["held_out"].tolist())
        assert not held & set(stored["train"].tolist()) | held & set(stored["val"].tolist())
    manifest = json.loads((finished / "data_split.json").read_text())["parts"]
    assert all(entry["overlap_with_held_out"] == 0 for entry in manifest.values())


def test_edits_reach_their_class_and_the_log_says_so(finished: Path) -> None:
    log = rows(finished / "edit_log.csv")
    assert len(log) >= 10
    assert all(row["success"] == "True" and row["class_after"] == row["target"] for row in log)
    assert all(row["class_before"] != row["target"] for row in log)
    assert {"sample", "residual_norm", "update_norm", "layers"} <= set(log[0])
    assert [row["sample"] for row in rows(finished / "head_edit_log.csv")] == [row["sample"] for row in log]


def test_the_report_is_recomputed_from_predictions(finished: Path) -> None:
    """The headline numbers follow from predictions.csv, by plain counting."""
    seen = rows(finished / "predictions.csv")
    was = np.array([row["before_class"] == row["label"] for row in seen])
    for method in ("alphaedit", "head"):
        now = np.array([row[f"{method}_class"] == row["label"] for row in seen])
        report = {
            r["measure"]: r
            for r in rows(finished / "evaluation_report.csv")
            if r["method"] == method and not r["class"]
        }
        assert float(report["accuracy"]["before"]) == pytest.approx(was.mean(), abs=1e-6)
        assert float(report["accuracy"]["after"]) == pytest.approx(now.mean(), abs=1e-6)
        assert float(report["locality"]["after"]) == pytest.approx((was & now).sum() / was.sum(), abs=1e-6)
        assert float(report["repaired"]["after"]) == pytest.approx((~was & now).sum() / (~was).sum(), abs=1e-6)
        assert float(report["net_accuracy_change"]["after"]) == pytest.approx(now.mean() - was.mean(), abs=1e-6)
        low, high = (float(report["locality"][f"after_{end}"]) for end in ("low", "high"))
        assert low <= float(report["locality"]["after"]) <= high
    probabilities = [sum(float(row[f"before_p_{c}"]) for c in range(10)) for row in seen]
    assert np.allclose(probabilities, 1, atol=1e-4)


def test_the_edited_model_is_the_trained_one_with_the_delta(finished: Path) -> None:
    trained, edited = ws.load(finished), ws.load(finished / "edited")
    delta = ws.Delta.load(finished / "delta.safetensors")
    assert weights_hash(trained) != weights_hash(edited)
    with delta.on(trained):
        assert weights_hash(trained) == weights_hash(edited)
    plain = AutoModelForImageClassification.from_pretrained(finished / "edited")
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(plain.eval()(images).logits, edited.logits(images))


def test_only_the_head_changes_in_head_editing(finished: Path) -> None:
    assert set(ws.Delta.load(finished / "delta_head.safetensors").changes) <= {"classifier.weight", "classifier.bias"}


def test_layers_come_from_the_trace(finished: Path) -> None:
    effects = ws.Effects.load(finished / "effects.safetensors")
    assert ws.Delta.load(finished / "delta.safetensors").info["layers"] == list(effects.top_layers(3))
    statistics = rows(finished / "layer_statistics.csv")
    assert [int(row["layer"]) for row in statistics] == [0, 1, 2, 3]
    importance = rows(finished / "layer_importance.csv")
    assert len(importance) == len(effects.samples)
    assert float(statistics[0]["mean"]) == pytest.approx(np.mean([float(r["layer_0"]) for r in importance]), abs=1e-5)


def test_a_stage_that_is_no_evaluation_gets_no_held_out_data(finished: Path) -> None:
    options = read_yaml(finished / "config.yaml", RunOptions())
    job = Job(options, RunFolder.named(options, "base"))
    for stage in ("data", "train", "locate", "edit"):
        job.stage = stage
        with pytest.raises(HeldOutError, match=stage):
            job.part("held_out")
    job.stage = "eval"
    with pytest.raises(HeldOutError):  # even there only inside weightsmith.evaluate
        job.part("held_out").pixels()


def test_config_reads_back_and_the_page_stands_alone(finished: Path) -> None:
    entries = yaml.safe_load((finished / "config.yaml").read_text())
    assert entries["edit_method"] == ["alphaedit", "head"]
    page = (finished / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for word in ("held_out", "efficacy", "confusion", "data:image/"):
        assert word.lower() in page.lower(), word


def test_examples_are_what_the_predictions_say(finished: Path) -> None:
    told = {(row["part"], row["sample"]): row for row in rows(finished / "predictions.csv")}
    found = load_examples(finished / "examples.safetensors")
    assert {(one.kind, one.method) for one in found} == {
        (kind, method) for kind in ("edited", "repaired", "broken") for method in ("alphaedit", "head")
    }
    page = (finished / "report.html").read_text(encoding="utf-8")
    for one in found:
        if one.kind == "edited":
            continue
        assert f"{one.method}: {one.total} {one.kind}" in page
        wrong_first = one.kind == "repaired"
        every = []
        for row in told.values():
            was, now = (row[f"{state}_class"] == row["label"] for state in ("before", one.method))
            if (was, now) == (not wrong_first, wrong_first):
                every.append(row)
        assert one.total == len(every)
        for place, name in enumerate(one.names):
            row = told["held_out", name]
            assert row in every
            assert int(row["label"]) == int(one.labels[place])
            before = [float(value) for key, value in row.items() if key.startswith("before_p_")]
            assert one.before[place].tolist() == pytest.approx(before, abs=1e-5)
