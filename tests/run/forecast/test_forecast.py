"""`--dry-run`: the steps, what is there already, what is refused, and that nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weightsmith import mapped, ranks
from weightsmith.locate import forecast as sweeps
from weightsmith.models import load, save
from weightsmith.models.paged import bytes_of
from weightsmith.run.correct.pipeline import fingerprint
from weightsmith.run.forecast import pace
from weightsmith.run.forecast.plan import Plan, Step, amount, duration
from weightsmith.run.options.correct import RunOptions


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are measured on a single pass."""
    monkeypatch.setattr(pace, "_PATIENCE", 0.0)
    monkeypatch.setattr(pace, "_LEAST", 1)
    monkeypatch.setattr(pace, "_MOST", 1)
    monkeypatch.setattr(sweeps, "_SECONDS", 0.0)


@pytest.fixture
def dry(weightsmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`dry("run", ...)`: the object that a plan is told as; nothing may be written anywhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> dict:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        seen = weightsmith(*words, "--dry-run", "--json")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        told = json.loads(seen.out)
        assert told["status"] == seen.status
        if seen.status == 0:
            assert told["files"] == []
            total, waiting = told["figures"]["total"], [s for s in told["figures"]["steps"] if not s["there"]]
            assert total["forwards"] == pytest.approx(sum(step["forwards"] for step in waiting))
            assert total["seconds"] == pytest.approx(sum(step["seconds"] for step in waiting))
            assert total["seconds"] > 0
        return told

    return run


def names(told: dict) -> list[str]:
    return [step["name"] for step in told["figures"]["steps"]]


def test_run(dry, tiny, tmp_path: Path) -> None:
    """1,797 digits: a fifth held out, three tenths of the rest for validation."""
    told = dry("run", *tiny(tmp_path), "--edit-method", "alphaedit", "head", "--run-name", "a")
    assert names(told) == [
        "load",
        "data",
        "train",
        "errors",
        "locate",
        "edit, alphaedit",
        "edit, head",
        "eval",
        "report",
    ]
    steps = {step["name"]: step for step in told["figures"]["steps"]}
    assert steps["data"]["what"] == "train 1007, val 431, held_out 359 images"
    # Four blocks, six epochs; forward and backward are three passes.
    assert steps["train"]["forwards"] == 6 * 4 * (3 * 1007 + 431)
    assert steps["errors"]["forwards"] == 4 * 1007
    assert told["figures"]["would_fill"] == str(tmp_path / "runs" / "a")
    assert told["figures"]["total"]["memory"] > told["figures"]["total"]["weights"] > 0


def test_stages_that_are_there_are_skipped(dry, tiny, weightsmith, tmp_path: Path) -> None:
    flags = [*tiny(tmp_path), "--run-name", "a"]
    assert weightsmith("run", *flags, "--stage", "data").status == 0
    refused = dry("run", *flags)
    assert refused["status"] == 1
    assert "--resume" in refused["error"]
    told = dry("run", *flags, "--resume")
    assert [step["name"] for step in told["figures"]["steps"] if step["there"]] == ["data"]
    asked = RunOptions(seed=1)
    assert fingerprint(asked, "data") != fingerprint(RunOptions(), "data")
    again = dry("run", *flags, "--overwrite")
    assert not any(step["there"] for step in again["figures"]["steps"])


def test_what_the_command_refuses(dry, tmp_path: Path) -> None:
    for words, part in (
        (["run", "--edit-method", "alphaedti"], "alphaedit"),
        (["run", "--data-path", tmp_path / "absent.npz"], "absent.npz"),
        (["locate", "trace", "--num-ablations", 0], "--num-ablations"),
        (["merge", "--base", "x"], "--models"),
        (["evaluate", "--model-paths", tmp_path / "nowhere", "--data-path", "digits"], "nowhere"),
        (["edit", "--edit-method", "romee"], "rome"),
        (["compress", "--acdc-thresholds", -1], "--acdc-thresholds"),
        (["artificial", "--preset", "palin"], "plain"),
        (["ablate", "replay", "--max-edits", 5], "--batch-size"),
    ):
        told = dry(*words)
        assert told["status"] == 1
        assert part in told["error"]


def test_locate(dry) -> None:
    patch = dry("locate", "patch", "--max-samples", 8, "--map-samples", 2)
    assert names(patch) == ["train", "select", "layers", "heads", "maps", "report"]
    assert "30 places in 8 inputs" in patch["figures"]["steps"][2]["what"]
    screen = dry("locate", "attribution", "--max-samples", 8, "--verify", 3, "--audit", 4)
    assert names(screen) == ["train", "select", "screen", "verify", "audit", "report"]
    assert names(dry("locate", "astra", "--max-samples", 8)) == ["train", "select", "masks", "steering", "report"]


def test_baseline_and_compress(dry, tiny, tmp_path: Path) -> None:
    model = ["--model", tiny(tmp_path)[tiny(tmp_path).index("--model") + 1]]
    assert names(dry("baseline", "--data-path", "digits", *model, "--epochs", 2)) == ["load", "train", "test", "report"]
    told = dry("compress", *model, "--epochs", 2, "--method", "eap", "--recover-epochs", 1)
    goals = [f"eap_keep_{ratio}" for ratio in ("0.9", "0.8", "0.7")]
    predicted = [f"predict, {name}" for name in ("baseline", *goals)]
    assert names(told) == ["load", "baseline", *goals, "study", *predicted, "timing", "report"]


def test_evaluate_and_merge(dry, tiny_model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tiny_model("vit", seed=len(name), classes=10), tmp_path / name)
    told = dry("evaluate", "--model-paths", tmp_path / "one", tmp_path / "two", "--data-path", "digits")
    assert names(told) == ["load", "predict, one", "predict, two", "timing", "report"]
    assert told["figures"]["steps"][1]["what"] == "359 held-out images"
    told = dry("merge", "--base", tmp_path / "one", "--models", tmp_path / "two", "--out", tmp_path / "out")
    assert names(told) == ["merge, task_arithmetic"]
    assert told["figures"]["would_fill"] == str(tmp_path / "out")


def test_the_search_of_a_merge_is_counted(dry, tiny_model, tmp_path: Path) -> None:
    """Two coefficients and the model itself on 287 validation digits; base, model and merge on 359 held-out ones."""
    for name in ("one", "two"):
        save(tiny_model("vit", seed=len(name), classes=10), tmp_path / name)
    models = ["--base", tmp_path / "one", "--models", tmp_path / "two", "--out", tmp_path / "out"]
    told = dry("merge", *models, "--data-path", "digits", "--head", "base", "--coefficients", 0.5, 1)
    assert names(told) == ["load", "search, merges", "search, digits", "merge, task_arithmetic", "report"]
    _, merges, judged, merged, _ = told["figures"]["steps"]
    assert merges["seconds"] > 3 * merged["seconds"]  # each is loaded as well
    layers = load(tmp_path / "one").n_layers
    assert judged["forwards"] == layers * ((2 + 1) * 287 + 3 * 359)


def test_artificial(dry) -> None:
    told = dry("artificial", "--epochs", 2, "--coefficients", 0, 0.5)
    assert names(told) == ["load", "data", "base", "finetune", "sweep", "report"]
    assert "16 cells" in told["figures"]["steps"][4]["what"]


def test_facts_in_a_language_model(dry, talker: Path, weightsmith) -> None:
    model = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    told = dry("edit", *model, "--edit-method", "memit", "rome", "--max-edits", 4)
    assert names(told) == ["load", "read", "edit, memit", "edit, rome", "before", "after, memit", "after, rome", "save"]
    assert "12 questions" in told["figures"]["steps"][4]["what"]
    assert not any("more memory" in note for note in told["notes"])
    told = dry("edit", *model, "--edit-method", "memit", "--max-edits", 4, "--batch-size", 2)
    assert "2 batches of 2 edits, 0 of them in the journal" in told["figures"]["steps"][2]["what"]
    told = dry("compare", *model, "--methods", "memit", "rome", "--batch-sizes", 1, 4, "--seeds", 0)
    cells = [f"{method}, {size} edits, seed 0" for method in ("memit", "rome") for size in (1, 4)]
    assert names(told) == ["load", "read", "statistics, memit", "statistics, rome", *cells, "report"]
    told = dry(
        "ablate", "replay", *model, "--edit-method", "memit", "--max-edits", 4, "--batch-size", 2, "--buffers", 5
    )
    assert "no replay, seed 0" in names(told)
    assert "rate 2, buffer 5, recent, seed 0" in names(told)


def test_workers_have_networks_of_their_own(dry, talker: Path) -> None:
    model = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    asked = ["compare", *model, "--methods", "memit", "--batch-sizes", 1, "--seeds", 0]
    alone, three, cluster = (dry(*asked, *more) for more in ([], ["--jobs", 3], ["--backend", "dask"]))
    one = alone["figures"]["total"]["memory"]
    assert three["figures"]["total"]["memory"] == pytest.approx(4 * one, rel=0.3)
    assert cluster["figures"]["total"]["memory"] == pytest.approx(one, rel=0.3)
    assert not [note for note in alone["notes"] if "cells" in note]
    assert sum("--jobs 3: so many cells at a time" in note for note in three["notes"]) == 1
    assert sum("--backend dask: the time" in note for note in cluster["notes"]) == 1


def test_what_processes_of_a_job_need(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(command="x", steps=[Step(name="a", what="", memory=5)], weights=10)
    assert plan.memory == 15
    monkeypatch.setattr(ranks, "world", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (plan.each, plan.memory) == (15, 30)
    assert any("4 processes share the passes" in note for note in plan.outcome().notes)


@pytest.mark.skipif(not mapped.can_map(), reason="only Linux tells which pages of a file were written to")
def test_weights_that_stay_on_the_disk_count_two_blocks(dry, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    asked = ["edit", *model, "--edit-method", "memit", "--max-edits", 2]
    here, there = (dry(*asked, "--device", device)["figures"] for device in ("cpu", "disk"))
    network = load(talker / "model")
    block = bytes_of(network.blocks[0])
    assert here["total"]["weights"] - there["total"]["weights"] == (network.n_layers - 2) * block
    assert there["total"]["forwards"] == here["total"]["forwards"]
    monkeypatch.setattr(mapped, "free_memory", lambda: 2**10)
    (note,) = (note for note in dry(*asked)["notes"] if "more memory" in note)
    assert "1.0 KB" in note or "0.0 MB" in note
    assert "--device disk" in note


def test_a_plan_is_told_to_people(weightsmith, tmp_path: Path) -> None:
    seen = weightsmith("locate", "trace", "--max-samples", 4, "--runs-dir", tmp_path / "runs", "--dry-run")
    assert seen.status == 0
    assert "block forwards" in seen.out
    assert "Nothing was written." in seen.out
    assert not (tmp_path / "runs").exists()


def test_sums_leave_out_what_is_there() -> None:
    steps = [Step(name="a", what="", forwards=5, seconds=2, memory=7, there=True)]
    steps += [Step(name=name, what="", forwards=3, seconds=1, memory=memory) for name, memory in (("b", 4), ("c", 6))]
    plan = Plan(command="x", steps=steps, weights=10)
    assert (plan.forwards, plan.seconds, plan.memory) == (6, 2, 16)


def test_what_was_computed_is_still_there_when_figures_are_drawn() -> None:
    """C's allocator keeps up to 64 MiB of what was freed; more goes back to the system."""
    for work, told in ((10, 10 + 5), (200 * 2**20, 200 * 2**20), (2**26 + 2, 2**26 + 5)):
        steps = [Step(name="work", what="", memory=work), Step(name="report", what="", stays=5)]
        assert Plan(command="x", steps=steps, weights=1, held=2).memory == 3 + told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.31, "0.3 s"), (42.4, "42 s"), (600, "10 min"), (9000, "2.5 h"), (9e5, "10.4 days")]
)
def test_times_as_people_say_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_sizes_as_people_say_them() -> None:
    assert [amount(size) for size in (1.2e6, 3e7, 2.5e9)] == ["1.2 MB", "30 MB", "2.5 GB"]
