"""`weightsmith compress`: trained, made smaller and measured in one run folder; gone on with, redone, refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from tests.run.conftest import TINY, assert_refused, undrawn
from weightsmith.circuit import Kept, Shape
from weightsmith.data.images import ImageSet
from weightsmith.data.sources import digits
from weightsmith.evaluate import answers_of, divergence
from weightsmith.measure import Cost
from weightsmith.models import load, save
from weightsmith.prune import METHODS, shape_of
from weightsmith.run.compress import baseline as compress_baseline
from weightsmith.run.compress import goals as compress_goals
from weightsmith.run.compress import models as compress_models
from weightsmith.run.compress import study as compress_study
from weightsmith.run.compress.baseline import resolved
from weightsmith.run.compress.record import finished
from weightsmith.run.evaluate import measured
from weightsmith.run.options.compress import CompressOptions, UnitScore

NAMES = ("acdc_threshold_0.05", "eap_keep_0.6")
FILES = (
    "evaluation_results.png", "evaluation_metrics.json", "evaluation_metrics.csv", "class_accuracy.csv", "report.html",
    "compress_metrics.json",
    "compress_metrics.csv", "training_metrics.csv", "agreement.csv", "faithfulness.csv", "data_split.json",
    "data_split_indices.npz", "data_split_info.csv", "figures/kept.png", "figures/faithfulness.png", "config.yaml",
    "env.json", "events.jsonl", "log.txt",
)  # fmt: skip


def flags(folder: Path, *more: object) -> list[object]:
    model = folder / "tiny.json"
    model.write_text(json.dumps(TINY))
    return [
        "compress", "--model", model, "--epochs", 2, "--lr", 3e-3, "--batch-size", 64, "--rounds", 6, "--device", "cpu",
        "--runs-dir", folder / "runs", "--analysis-batches", 2, "--round-widths", 4, "--acdc-thresholds", 0.05,
        "--eap-keep-ratios", 0.6, "--study-images", 24, "--run-name", "c", *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder around a finished run called c; do not write into it."""
    from weightsmith import cli

    folder = tmp_path_factory.mktemp("compressed")
    with undrawn():
        cli.main([str(word) for word in flags(folder)])
    return folder


@pytest.fixture
def copied(compressed: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(compressed, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times do not matter here, but in the run that all share, which is made before."""
    request.getfixturevalue("compressed")

    def of_no_time(models: dict[str, Any], *_: object, **__: object) -> Any:
        import numpy as np

        from weightsmith.measure import Latency

        return {name: {size: Latency(size, np.full(6, 2.0)) for size in (1, 8, 64)} for name in models}

    monkeypatch.setattr(measured, "latencies", of_no_time)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def places(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "optimized_models").iterdir())


def never(*_: object, **__: object) -> Any:
    raise AssertionError("it is there already")


# --- what a run leaves ----------------------------------------------------------------------------------------------


def test_a_run_is_one_folder(compressed: Path) -> None:
    run = compressed / "runs" / "c"
    assert all((run / name).stat().st_size for name in FILES)
    assert places(run) == list(NAMES)
    for name in NAMES:
        place = run / "optimized_models" / name
        assert all((place / file).stat().st_size for file in ("kept.json", "README.md", "search.csv", "config.json"))
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", ".old"))]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' not in page  # it draws its charts itself
    for file in ("evaluation_results.png", "figures/kept.png", "figures/faithfulness.png"):
        assert (run / file).stat().st_size > 0
    for words in (
        "How many heads stay in each block", "Faithfulness over the share that is kept", "budget of the search",
        "Smaller models", "Fastest within the tolerance", "What stays of heads", "The KL budget holds on", "Spearman", "CPR",
    ):  # fmt: skip
        assert words in page
    card = (run / "optimized_models" / NAMES[0] / "README.md").read_text(encoding="utf-8")
    for words in ("heads", "stay", "Mean KL divergence", "of the multiplications"):
        assert words in card


def test_the_models_are_smaller_and_what_their_record_says(compressed: Path) -> None:
    run = compressed / "runs" / "c"
    whole = load(run / "models" / "baseline")
    for name in NAMES:
        place = run / "optimized_models" / name
        record, model = read(place / "kept.json"), load(place)
        before = Shape(**{key: tuple(one) if isinstance(one, list) else one for key, one in record["whole"].items()})
        assert before == shape_of(whole)
        assert shape_of(model) == Kept.from_json(record["kept"]).shape(before)
        assert record["baseline"] == whole.fingerprint()
        assert model.class_names == whole.class_names
        assert Cost.of(model).macs == record["info"]["macs"] < before.macs()
        assert (place / "model.safetensors").stat().st_size < (
            run / "models" / "baseline" / "model.safetensors"
        ).stat().st_size


def test_the_divergence_is_measured_on_held_out_images(compressed: Path) -> None:
    run, held_out = compressed / "runs" / "c", digits().split(0.2, 42).held_out
    whole = answers_of(load(run / "models" / "baseline"), held_out)
    table = rows(run / "compress_metrics.csv")
    assert [row["model"] for row in table] == list(NAMES)
    for row, entry in zip(table, read(run / "compress_metrics.json")["models"], strict=True):
        mine = divergence(whole, answers_of(load(run / "optimized_models" / row["model"]), held_out))
        assert float(row["kl_held_out"]) == pytest.approx(mine.value, abs=1e-6)
        assert float(row["kl_held_out_high"]) == pytest.approx(mine.high, abs=1e-6)
        assert entry["kl"]["n"] == int(row["judging_images"]) > 0
        assert float(row["kl_ratio"]) == pytest.approx(mine.value / entry["kl"]["value"], rel=1e-3)
    assert [row["budget_holds"] for row in table] == ["yes" if float(table[0]["kl_held_out"]) <= 0.05 else "no", ""]


def test_evaluate_finds_the_same_images(weightsmith, compressed: Path, tmp_path: Path) -> None:
    run = compressed / "runs" / "c"
    models = [run / "models" / "baseline", run / "optimized_models" / NAMES[0]]
    given = ["evaluate", "--data-path", "digits", "--output-dir", tmp_path / "e", "--device", "cpu", "--rounds", 6]
    assert weightsmith(*given, "--model-paths", *models).status == 0
    ours, theirs = (read(place / "evaluation_metrics.json") for place in (run, tmp_path / "e"))
    assert ours["data"] == theirs["data"]
    assert theirs["notes"] == []
    assert [one["name"] for one in theirs["models"]] == ["baseline", NAMES[0]]
    assert ours["models"][:2] != []
    for mine, other in zip(ours["models"], theirs["models"], strict=False):
        assert mine["measures"]["accuracy"] == other["measures"]["accuracy"]


def test_searches_fit_to_train_and_are_judged_by_val(
    weightsmith, compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageSet] = []
    real = compress_goals.within_kl

    def watched(model: Any, images: ImageSet, *given: Any, judging: ImageSet) -> Any:
        seen.extend([images, judging])
        return real(model, images, *given, judging=judging)

    monkeypatch.setattr(compress_goals, "within_kl", watched)
    run = tmp_path / "runs" / "c"
    save(load(compressed / "runs" / "c" / "models" / "baseline"), run / "models" / "baseline")
    given = ["--mode", "optimize", "--method", "acdc", "--no-study", "--judging-images", 40]
    outcome = weightsmith(*flags(tmp_path, *given))
    assert outcome.status == 0, outcome.err
    assert not (run / "agreement.csv").exists()
    images, judging = seen
    parts = digits().split(0.2, 42).parts()
    assert {name: images.overlaps(one) for name, one in parts.items()} == {"train": 64, "val": 0, "held_out": 0}
    assert {name: judging.overlaps(one) for name, one in parts.items()} == {"train": 0, "val": 40, "held_out": 0}


def test_what_scores_are_worth_is_told(compressed: Path) -> None:
    run = compressed / "runs" / "c"
    table = rows(run / "agreement.csv")
    assert {row["method"] for row in table} == set(METHODS) == set(get_args(UnitScore))
    assert all(row["spearman"] == "" or -1 <= float(row["spearman"]) <= 1 for row in table)
    assert all(float(row["spearman"]) == 1 for row in table if row["method"] == "exact" and row["spearman"])
    curves = rows(run / "faithfulness.csv")
    names = {row["ranked"] for row in curves}
    assert {name.partition(",")[0] for name in names} == {"heads and neurons", "edges"}
    for name in names:
        ends = [
            float(row["faithfulness"]) for row in curves if row["ranked"] == name and row["fraction"] in ("0.0", "1.0")
        ]
        assert ends == pytest.approx([0, 1], abs=1e-4)


# --- stages, and going on -------------------------------------------------------------------------------------------


def test_stages_one_after_another(weightsmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "c"
    assert weightsmith(*flags(tmp_path, "--mode", "train")).status == 0
    assert (run / "models" / "baseline" / "model.safetensors").exists()
    assert not (run / "optimized_models").exists()
    assert not (run / "report.html").exists()
    monkeypatch.setattr(compress_baseline, "fit", never)
    # Nothing but the place is needed to go on; what is said holds for this call.
    there = ["compress", "--runs-dir", tmp_path / "runs", "--run-name", "c"]
    outcome = weightsmith(*there, "--mode", "optimize", "--method", "eap", "--no-study")
    assert outcome.status == 0, outcome.err
    assert places(run) == ["eap_keep_0.6"]
    assert "eap_keep_0.6" in outcome.out
    outcome = weightsmith(*there, "--mode", "optimize", "--eap-keep-ratios", 0.5, "--method", "eap", "--no-study")
    assert outcome.status == 0, outcome.err
    assert places(run) == ["eap_keep_0.5", "eap_keep_0.6"]
    outcome = weightsmith(*there, "--mode", "evaluate")
    assert outcome.status == 0, outcome.err
    assert [one["name"] for one in read(run / "evaluation_metrics.json")["models"]] == [
        "baseline", "eap_keep_0.5", "eap_keep_0.6",
    ]  # fmt: skip


def test_what_is_finished_is_not_made_again(weightsmith, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied / "runs" / "c"
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    for module, name in (
        (compress_baseline, "fit"), (compress_goals, "within_kl"), (compress_goals, "within_macs"),
        (measured, "latencies"), (measured, "answers_of"), (compress_study, "agreement"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, never)
    page = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert weightsmith("compress", "--runs-dir", copied / "runs", "--run-name", "c", "--resume").status == 0
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
    again = (run / "report.html").read_text(encoding="utf-8")
    assert again.count("<table") == page.count("<table")


def test_a_stopped_search_starts_that_model_again(
    weightsmith, compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run, baseline = tmp_path / "runs" / "c", compressed / "runs" / "c" / "models" / "baseline"
    with monkeypatch.context() as patched:
        patched.setattr(compress_goals, "within_macs", stopped)
        assert weightsmith(*flags(tmp_path, "--checkpoint", baseline, "--no-study")).status == 130
    assert places(run) == [NAMES[0]]
    before = (run / "optimized_models" / NAMES[0] / "kept.json").read_bytes()
    monkeypatch.setattr(compress_goals, "within_kl", never)
    outcome = weightsmith(*flags(tmp_path, "--checkpoint", baseline, "--no-study", "--resume"))
    assert outcome.status == 0, outcome.err
    assert places(run) == list(NAMES)
    assert (run / "optimized_models" / NAMES[0] / "kept.json").read_bytes() == before


def test_a_damaged_record_is_made_again(weightsmith, copied: Path) -> None:
    place = copied / "runs" / "c" / "optimized_models" / NAMES[1]
    before = load(place).fingerprint()
    baseline = read(place / "kept.json")["baseline"]
    (place / "kept.json").write_text("{")
    notes: list[str] = []
    assert [one.name for one in finished(copied / "runs" / "c", baseline, notes).values()] == [NAMES[0]]
    assert notes == [f"Left out: {NAMES[1]} is not finished, or its kept.json is damaged."]
    outcome = weightsmith("compress", "--runs-dir", copied / "runs", "--run-name", "c", "--mode", "optimize")
    assert outcome.status == 0, outcome.err
    assert read(place / "kept.json")["name"] == NAMES[1]
    assert load(place).fingerprint() == before


def test_other_options_do_not_replace_what_is_there(weightsmith, copied: Path) -> None:
    there = ["compress", "--runs-dir", copied / "runs", "--run-name", "c"]
    run = copied / "runs" / "c"
    config = (run / "config.yaml").read_bytes()
    assert_refused(weightsmith(*flags(copied)), ["exists", "--resume", "--overwrite"])
    assert_refused(
        weightsmith(*there, "--resume", "--fold", "mean"), [NAMES[0], "other options (--fold ridge)", "--overwrite"]
    )
    assert_refused(weightsmith(*there, "--resume", "--seed", 7), ["other options (--seed 42)"])
    assert_refused(weightsmith(*there, "--resume", "--epochs", 3), ["other options (--epochs 2)"])
    assert (run / "config.yaml").read_bytes() == config
    kept = (run / "models" / "baseline" / "model.safetensors").read_bytes()
    outcome = weightsmith(
        *there, "--mode", "optimize", "--method", "acdc", "--fold", "mean", "--no-study", "--overwrite"
    )
    assert outcome.status == 0, outcome.err
    assert read(run / "optimized_models" / NAMES[0] / "kept.json")["settings"]["fold"] == "mean"
    assert read(run / "optimized_models" / NAMES[1] / "kept.json")["settings"]["fold"] == "ridge"
    assert (run / "models" / "baseline" / "model.safetensors").read_bytes() == kept
    assert not (run / "report.html").exists()  # it was of the models before


def test_overwriting_that_fails_leaves_what_was_there(
    weightsmith, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    run = copied / "runs" / "c"
    before = {path.name: path.read_bytes() for path in run.glob("optimized_models/*/kept.json")}
    monkeypatch.setattr(compress_goals, "within_macs", fails)
    outcome = weightsmith(*flags(copied, "--overwrite"))
    assert_refused(outcome, ["eap_keep_0.6 cannot be made: RuntimeError: in the middle"])
    assert {path.name: path.read_bytes() for path in run.glob("optimized_models/*/kept.json")} == before
    assert (run / "report.html").exists()


def test_another_split_cannot_slip_in(weightsmith, copied: Path) -> None:
    """The baseline has learned from what another seed would hold out."""
    there = ["compress", "--runs-dir", copied / "runs", "--run-name", "c", "--skip-training"]
    assert_refused(weightsmith(*there, "--seed", 7, "--overwrite"), ["another split", "--seed"])
    run = copied / "runs" / "c"
    assert places(run) == list(NAMES)
    assert read(run / "data_split.json")["seed"] == 42


# --- baselines that are given ---------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_baseline(weightsmith, compressed: Path, tmp_path: Path) -> None:
    baseline = compressed / "runs" / "c" / "models" / "baseline"
    given = ["--mode", "train", "--checkpoint", baseline, "--baseline-name", "mine"]
    outcome = weightsmith(*flags(tmp_path, *given))
    assert outcome.status == 0, outcome.err
    copy = tmp_path / "runs" / "c" / "models" / "mine"
    assert load(copy).fingerprint() == load(baseline).fingerprint()
    assert read(copy / "baseline.json")["notes"] == [f"Nothing was trained: the baseline is {baseline}."]
    refused = weightsmith(*flags(tmp_path, *given, "--run-name", "d", "--seed", 7))
    assert_refused(refused, ["--checkpoint", "images that this run holds out", "--seed"])
    assert not (tmp_path / "runs" / "d").exists()


def test_a_baseline_that_somebody_put_there(weightsmith, compressed: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "c" / "models" / "baseline"
    save(load(compressed / "runs" / "c" / "models" / "baseline"), place)
    outcome = weightsmith(*flags(tmp_path, "--skip-training", "--method", "eap", "--no-study"))
    assert outcome.status == 0, outcome.err
    notes = read(tmp_path / "runs" / "c" / "evaluation_metrics.json")["notes"]
    assert "What baseline was trained on is not recorded." in notes


def test_models_of_another_baseline_are_left_out(copied: Path) -> None:
    run = copied / "runs" / "c"
    place = run / "optimized_models" / NAMES[0]
    record = read(place / "kept.json")
    (place / "kept.json").write_text(json.dumps(record | {"baseline": "0" * 64}))
    (run / "optimized_models" / f".{NAMES[0]}.killed.tmp").mkdir()
    notes: list[str] = []
    assert [one.name for one in finished(run, record["baseline"], notes).values()] == [NAMES[1]]
    assert notes == [f"Left out: {NAMES[0]} was made from another baseline."]


# --- recovery, ONNX, sweeps -----------------------------------------------------------------------------------------


def test_recovery_never_harms_on_validation_images_and_goes_on(
    weightsmith, compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    baseline = compressed / "runs" / "c" / "models" / "baseline"
    given = ["--checkpoint", baseline, "--method", "eap", "--no-study", "--recover-epochs", 2, "--recover-lr", 1e-3]
    with monkeypatch.context() as patched:
        patched.setattr(compress_models, "distill", stopped)
        assert weightsmith(*flags(tmp_path, *given)).status == 130
    run = tmp_path / "runs" / "c"
    assert not any(run.glob("optimized_models/*"))
    monkeypatch.setattr(compress_goals, "within_macs", never)  # the search is kept
    outcome = weightsmith(*flags(tmp_path, *given, "--resume"))
    assert outcome.status == 0, outcome.err
    place = run / "optimized_models" / NAMES[1]
    recovery = read(place / "kept.json")["recovery"]
    assert recovery["val_accuracy_after"] >= recovery["val_accuracy_before"]
    assert [row["epoch"] for row in rows(place / "recovery.csv")] == ["0", "1", "2"]
    assert (place / "search.csv").stat().st_size
    assert places(run) == [NAMES[1]]
    assert not list((run / "checkpoints").iterdir())
    (row,) = rows(run / "compress_metrics.csv")
    assert row["recovered_epochs"] == str(recovery["best_epoch"])
    assert row["kl_ratio"] == row["budget_holds"] == ""


def test_onnx_is_written_beside_a_model_that_is_there(
    weightsmith, copied: Path, random_pixels: Callable[..., torch.Tensor]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = [
        "--runs-dir",
        copied / "runs",
        "--run-name",
        "c",
        "--mode",
        "optimize",
        "--method",
        "eap",
        "--no-study",
        "--onnx",
    ]
    outcome = weightsmith("compress", *given)
    assert outcome.status == 0, outcome.err
    place = copied / "runs" / "c" / "optimized_models" / NAMES[1]
    model = load(place)
    pixels = model.preprocess(random_pixels(3, channels=1))
    session = runtime.InferenceSession(str(place / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), model.logits(pixels), atol=1e-4)


def test_a_sweep_asks_for_more_and_leaves_out_what_cannot_be() -> None:
    options = CompressOptions(pareto=True, acdc_thresholds=(0.02, 1.0), eap_keep_ratios=(0.6,), latency_ratios=(0.5,))
    goals = compress_goals.goals_of(options)
    names = [goal.name for goal in goals]
    assert names[:2] == ["acdc_threshold_0.02", "acdc_threshold_1"]
    assert names[-1] == "latency_ratio_0.5"
    assert len(set(names)) == len(names)
    assert {goal.value for goal in goals if goal.method == "acdc"} == {0.02, 1.0, *compress_goals.PARETO_THRESHOLDS}
    assert {goal.value for goal in goals if goal.method == "eap"} == {0.6, *compress_goals.PARETO_KEEP_RATIOS}
    shape = Shape(tokens=5, width=32, head_width=16, patch=48, classes=10, heads=(2,), neurons=(8,))
    notes: list[str] = []
    left = compress_goals.within_reach(goals, options, shape, notes)
    gone = [goal.value for goal in goals if goal not in left]
    assert gone
    assert max(gone) < min(goal.value for goal in left if goal.method == "eap")
    assert len(notes) == len(gone)
    assert all("Left out of the sweep" in note for note in notes)


def test_values_that_print_alike_have_names_of_their_own() -> None:
    options = CompressOptions(method="acdc", acdc_thresholds=(0.1, 0.1000000001))
    first, second = (goal.name for goal in compress_goals.goals_of(options))
    assert first == "acdc_threshold_0.1"
    assert second != first


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_stage_needs_the_name_of_its_run(weightsmith, compressed: Path) -> None:
    outcome = weightsmith("compress", "--runs-dir", compressed / "runs", "--mode", "optimize")
    assert_refused(outcome, ["--mode optimize works on an existing run", "--run-name", "c)"])


def test_there_must_be_models_to_evaluate(weightsmith, copied: Path) -> None:
    shutil.rmtree(copied / "runs" / "c" / "optimized_models")
    outcome = weightsmith("compress", "--runs-dir", copied / "runs", "--run-name", "c", "--mode", "evaluate")
    assert_refused(outcome, ["optimized_models has none", "--mode optimize"])


@pytest.mark.parametrize("family", ["deit", "mlp", "gpt2"])
def test_models_that_are_no_vit(weightsmith, tiny_model: Callable[..., Any], tmp_path: Path, family: str) -> None:
    save(tiny_model(family, classes=10), tmp_path / "other")
    outcome = weightsmith(*flags(tmp_path, "--checkpoint", tmp_path / "other"))
    assert_refused(outcome, ["--checkpoint", "cannot be compressed", "ViT image classifiers only"])
    assert not (tmp_path / "runs" / "c").exists()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (TINY | {"hidden_size": 10, "num_attention_heads": 3}, ["hidden_size 10 is no multiple of 3 heads"]),
        ({"model_type": "weightsmith_mlp", "image_size": 8, "hidden_sizes": [8]}, ["--model", "cannot be compressed"]),
    ],
)
def test_networks_that_cannot_be(weightsmith, tmp_path: Path, entries: dict[str, Any], words: list[str]) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(entries))
    outcome = weightsmith(*flags(tmp_path, "--model", tmp_path / "bad.json"))
    assert_refused(outcome, words)
    assert not (tmp_path / "runs" / "c").exists()


def test_classes_must_be_those_of_the_data(weightsmith, tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    save(tiny_model("vit", classes=4), tmp_path / "four")
    outcome = weightsmith(*flags(tmp_path, "--checkpoint", tmp_path / "four"))
    assert_refused(outcome, ["--checkpoint", "has 4 classes", "10"])


def test_a_damaged_record_of_the_baseline(weightsmith, copied: Path) -> None:
    (copied / "runs" / "c" / "models" / "baseline" / "baseline.json").write_text("{")
    outcome = weightsmith("compress", "--runs-dir", copied / "runs", "--run-name", "c", "--resume")
    assert_refused(outcome, ["baseline.json is damaged", "--overwrite"])


# --- Tiny-ImageNet --------------------------------------------------------------------------------------------------


def test_tiny_imagenet_has_its_own_model_and_holds_its_validation_part_out(
    weightsmith, photographs: Path, tmp_path: Path
) -> None:
    options = resolved(CompressOptions(data_path=str(photographs)))
    assert (options.model, options.held_out_from) == ("tiny-imagenet", "val")
    assert resolved(CompressOptions(data_path=str(photographs), model="small")).model == "small"
    assert resolved(CompressOptions()).held_out_from == "train"
    outcome = weightsmith(*flags(tmp_path, "--data-path", photographs, "--method", "eap", "--no-study"))
    assert outcome.status == 0, outcome.err
    run = tmp_path / "runs" / "c"
    split = read(run / "data_split.json")["parts"]
    assert (split["held_out"]["part"], split["held_out"]["size"]) == ("val", 12)
    assert read(run / "evaluation_metrics.json")["data"]["sha256"] == split["held_out"]["sha256"]
    assert yaml.safe_load((run / "config.yaml").read_text())["held_out_from"] == "val"


@pytest.mark.parametrize("harm", ["class", "jpeg", "table"])
def test_a_broken_folder(weightsmith, photographs: Path, tmp_path: Path, harm: str) -> None:
    words = {"class": ["n01"], "jpeg": ["n01_3.JPEG"], "table": ["val_annotations.txt", "val_99.JPEG"]}[harm]
    if harm == "class":
        shutil.rmtree(photographs / "train" / "n01")
    elif harm == "jpeg":
        whole = (photographs / "train" / "n01" / "images" / "n01_3.JPEG").read_bytes()
        for path in (photographs / "train" / "n01" / "images").iterdir():
            path.write_bytes(whole[: len(whole) // 2])
        words = ["train/n01/images"]
    else:
        table = photographs / "val" / "val_annotations.txt"
        table.write_text(table.read_text().replace("val_5.JPEG", "val_99.JPEG"))
    assert_refused(weightsmith(*flags(tmp_path, "--data-path", photographs)), words)
    assert not (tmp_path / "runs" / "c").exists()
