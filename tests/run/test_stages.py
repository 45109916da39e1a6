"""Stages one by one, resuming, overwriting, and where files go."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

import weightsmith as ws
from tests.forked import forked
from weightsmith.delta import Delta, weights_hash
from weightsmith.edit import editors
from weightsmith.effects import Effects
from weightsmith.run.correct import stages
from weightsmith.run.options.correct import STAGE_NAMES
from weightsmith.run.tables import delta_name
from weightsmith.train.loop import Training


def events(run: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(line["stage"], line["event"]) for line in lines]


def flags_of(run: Path) -> list[str]:
    return ["--runs-dir", str(run.parent), "--run-name", run.name]


def snapshot(run: Path, *names: str) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in names}


def test_stages_one_by_one_give_what_full_gives(weightsmith, tiny, finished: Path, tmp_path: Path) -> None:
    flags = tiny(tmp_path)
    asked = ["--edit-method", "alphaedit", "head", "--closed-form"]
    assert weightsmith("run", "--stage", "data", "--run-name", "steps", *flags, *asked).status == 0
    run = tmp_path / "runs" / "steps"
    for stage in ("train", "locate", "edit", "eval"):
        # The options come from the folder: only the name is given again.
        assert weightsmith("run", "--stage", stage, *flags_of(run)).status == 0, stage
    assert weights_hash(ws.load(run)) == weights_hash(ws.load(finished))
    same = ("layer_importance.csv", "edit_log.csv", "evaluation_report.csv", "confusion_matrix.csv", "predictions.csv")
    assert snapshot(run, *same) == snapshot(finished, *same)


def test_a_finished_stage_is_not_run_again(weightsmith, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = replace(stages.STAGES["edit"], run=lambda _: pytest.fail("the edit stage ran again"))
    monkeypatch.setitem(stages.STAGES, "edit", again)
    assert weightsmith("run", "--stage", "edit", *flags_of(run_copy)).status == 0


def test_other_options_need_overwrite(weightsmith, run_copy: Path) -> None:
    before = snapshot(run_copy, "edit_log.csv", "delta.safetensors", "evaluation_report.csv")
    refused = weightsmith("run", "--stage", "edit", "--max-edits", 11, *flags_of(run_copy))
    assert refused.status == 1
    assert "--overwrite" in refused.err
    assert snapshot(run_copy, *before) == before
    assert weightsmith("run", "--stage", "edit", "--max-edits", 11, "--overwrite", *flags_of(run_copy)).status == 0
    assert len((run_copy / "edit_log.csv").read_text().splitlines()) == 12


def test_a_redone_stage_that_fails_keeps_the_old_results(
    weightsmith, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("edit_log.csv", "delta.safetensors", "edited/model.safetensors", "evaluation_report.csv", "config.yaml")
    before = snapshot(run_copy, *names)
    edit = ["run", "--stage", "edit", "--overwrite", *flags_of(run_copy)]
    assert weightsmith(*edit, "--edit-layers", 99).status == 1
    assert snapshot(run_copy, *names) == before
    with monkeypatch.context() as patched:
        patched.setattr(stages, "save_requests", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert weightsmith(*edit).status == 130
    assert snapshot(run_copy, *names[:4]) == {name: before[name] for name in names[:4]}
    assert weightsmith("run", "--stage", "eval", *flags_of(run_copy)).status == 0
    assert not (run_copy / ".replaced").exists()


def test_what_a_kill_left_aside_is_put_back(weightsmith, run_copy: Path) -> None:
    before = (run_copy / "edit_log.csv").read_bytes()
    aside = run_copy / ".replaced"
    aside.mkdir()
    (run_copy / "edit_log.csv").rename(aside / "0")
    (aside / "paths.json").write_text(json.dumps({"0": str(run_copy / "edit_log.csv")}))
    (run_copy / "edit_log.csv").write_text("half of a new one")
    assert weightsmith("run", "--stage", "eval", *flags_of(run_copy)).status == 0
    assert (run_copy / "edit_log.csv").read_bytes() == before


def test_what_stands_on_a_redone_stage_is_not_taken_for_current(weightsmith, run_copy: Path) -> None:
    """After a new edit the old evaluation is gone, so no report can mix the two."""
    assert weightsmith("run", "--stage", "edit", "--max-edits", 11, "--overwrite", *flags_of(run_copy)).status == 0
    assert not (run_copy / "evaluation_report.csv").exists()
    assert weightsmith("run", "--stage", "eval", *flags_of(run_copy)).status == 0
    assert (run_copy / "evaluation_report.csv").exists()


def test_a_run_is_never_overwritten_unasked(weightsmith, tiny, run_copy: Path) -> None:
    before = snapshot(run_copy, "events.jsonl", "evaluation_report.csv", "config.yaml")
    again = weightsmith("run", *tiny(run_copy.parent.parent), "--run-name", "base")
    assert again.status == 1
    assert "--resume" in again.err
    assert "--run-name" in again.err
    assert snapshot(run_copy, *before) == before


def test_ctrl_c_in_each_stage_leaves_earlier_results_and_resumes(
    weightsmith, run_copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run that is interrupted in every stage in turn, and gone on with each time."""
    order = ("data", "train", "locate", "edit", "eval")
    leaves = ("data_split.json", "model/model.safetensors", "layer_importance.csv", "edit_log.csv")
    inner = {
        "data": (stages, "save_indices"),
        "train": (stages, "fit"),
        "locate": (stages.locate, "causal_trace"),
        "edit": (stages, "save_requests"),
        "eval": (stages.evaluate, "editing"),
    }

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(run_copy, *leaves)
    cut_off(run_copy, 0)
    for number, stage in enumerate(order):
        with monkeypatch.context() as patched:
            patched.setattr(*inner[stage], interrupted)
            stopped = weightsmith("run", "--resume", *flags_of(run_copy))
        assert stopped.status == 130, stage
        assert "--resume" in stopped.err
        assert "Traceback" not in stopped.err
        assert events(run_copy)[-1] == (stage, "interrupted")
        assert not list(run_copy.rglob("*.tmp"))
        assert snapshot(run_copy, *leaves[:number]) == {name: before[name] for name in leaves[:number]}
        done = [one for one, event in events(run_copy) if event == "done"]
        assert done == list(order[:number]), "an earlier stage was done again"
    assert weightsmith("run", "--resume", *flags_of(run_copy)).status == 0
    same = ("layer_importance.csv", "edit_log.csv", "evaluation_report.csv", "predictions.csv")
    assert snapshot(run_copy, *same) == snapshot(finished, *same)


def cut_off(run: Path, stage: int) -> None:
    """Make the run look as if it had been stopped before stage number `stage`."""
    order = ("data", "train", "locate", "edit", "eval")
    later = set(order[stage:])
    lines = [line for line in (run / "events.jsonl").read_text().splitlines() if json.loads(line)["stage"] not in later]
    (run / "events.jsonl").write_text("".join(line + "\n" for line in lines))


def stays_behind_the_first_checkpoint() -> None:
    real = Training._save

    def save(training: Training) -> None:
        real(training)
        while True:
            time.sleep(1)

    Training._save = save  # type: ignore[method-assign]  # in its process alone


def test_a_killed_training_resumes_to_the_same_weights(weightsmith, tiny, finished: Path, tmp_path: Path) -> None:
    flags = [*tiny(tmp_path), "--run-name", "killed"]
    run = tmp_path / "runs" / "killed"
    with forked(tmp_path / "said", "run", *flags, slowed=stays_behind_the_first_checkpoint) as command:
        command.until((run / "checkpoints" / "checkpoint.pt").exists)
        command.kill()
    assert ("train", "done") not in events(run)
    refused = weightsmith("run", "--stage", "train", *flags)
    assert refused.status == 1
    assert "--resume" in refused.err
    assert weightsmith("run", "--stage", "train", "--resume", *flags).status == 0
    assert weights_hash(ws.load(run)) == weights_hash(ws.load(finished))


def test_training_with_a_matching_checkpoint_is_skipped(weightsmith, run_copy: Path) -> None:
    cut_off(run_copy, 1)
    changed = (run_copy / "checkpoints" / "checkpoint.pt").stat().st_mtime_ns
    assert weightsmith("run", "--stage", "train", *flags_of(run_copy)).status == 0
    assert (run_copy / "checkpoints" / "checkpoint.pt").stat().st_mtime_ns == changed
    assert "skipped" in (run_copy / "log.txt").read_text()


def test_other_hyper_parameters_do_not_take_the_checkpoint(weightsmith, run_copy: Path) -> None:
    cut_off(run_copy, 1)
    refused = weightsmith("run", "--stage", "train", "--lr", 0.002, *flags_of(run_copy))
    assert refused.status == 1
    assert "lr 0.003 instead of 0.002" in refused.err


def test_folders_that_the_user_names_are_honoured(weightsmith, tiny, tmp_path: Path) -> None:
    places = {flag: tmp_path / flag for flag in ("checkpoint-dir", "log-dir", "results-dir")}
    named = [str(word) for flag, place in places.items() for word in (f"--{flag}", place)]
    flags = [*tiny(tmp_path), "--run-name", "spread", "--epochs", "1", *named]
    for stage in ("data", "train"):
        assert weightsmith("run", "--stage", stage, *flags).status == 0
    assert (places["checkpoint-dir"] / "spread" / "checkpoint.pt").exists()
    assert (places["log-dir"] / "spread" / "log.txt").exists()
    assert (places["results-dir"] / "spread" / "training_metrics.csv").exists()
    assert (tmp_path / "runs" / "spread" / "model" / "config.json").exists()
    assert not (tmp_path / "runs" / "spread" / "training_metrics.csv").exists()


def test_names_are_new_ones_unless_given(weightsmith, tiny, tmp_path: Path) -> None:
    for _ in range(2):
        assert weightsmith("run", "--stage", "data", *tiny(tmp_path)).status == 0
    assert weightsmith("run", "--stage", "data", "--timestamp", "--run-name", "mine", *tiny(tmp_path)).status == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names[:2] == ["digits", "digits-2"]
    assert names[2].startswith("mine-20")


def test_two_processes_do_not_share_a_run(weightsmith, run_copy: Path) -> None:
    from weightsmith.run.folder import RunFolder
    from weightsmith.run.options.correct import RunOptions

    with RunFolder.named(RunOptions(runs_dir=str(run_copy.parent)), run_copy.name).in_use():
        outcome = weightsmith("run", "--stage", "eval", *flags_of(run_copy))
    assert outcome.status == 1
    assert "another process" in outcome.err


def test_a_full_disk_in_each_stage(weightsmith, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that finds no space ends the stage with one sentence, and what was there before stays."""
    import errno

    real = os.replace
    for number, stage in enumerate(("data", "train", "locate", "edit", "eval")):
        cut_off(run_copy, number)
        before = {path: path.read_bytes() for path in run_copy.rglob("*.csv")}

        def full(source: object, target: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            outcome = weightsmith(
                "run", "--stage", stage, *flags_of(run_copy), *(["--resume"] if stage == "train" else [])
            )
        assert os.replace is real
        assert outcome.status == 1, stage
        assert "full" in outcome.err
        assert "Traceback" not in outcome.err
        assert not list(run_copy.rglob("*.tmp"))
        assert {path: path.read_bytes() for path in before} == before
        assert weightsmith("run", "--stage", stage, *flags_of(run_copy)).status == 0, stage


def test_stage_order_is_that_of_the_pipeline() -> None:
    assert tuple(stages.STAGES) == STAGE_NAMES


def test_every_editor_runs_through_the_command_line(weightsmith, run_copy: Path) -> None:
    """ROME and EMMET take the one traced layer of largest effect; flags of the training are none of an editor's."""
    flags = ["--runs-dir", run_copy.parent, "--run-name", "base", "--stage", "edit", "--overwrite", "--max-edits", 2]
    outcome = weightsmith("run", *flags, "--edit-method", *editors(), "--margin", 0.2)
    assert outcome.status == 0, outcome.err
    layers = {}
    for method in editors():
        delta = Delta.load(run_copy / delta_name(tuple(editors()), method))
        layers[method] = delta.info["layers"]
        assert delta.info["options"]["margin"] == 0.2
        assert delta.info["options"].get("lr") != 3e-3
    traced = Effects.load(run_copy / "effects.safetensors")
    assert layers["rome"] == layers["emmet"] == list(traced.top_layers(1))
    assert layers["alphaedit"] == layers["memit"] == list(traced.top_layers(3))
    assert layers["head"] == layers["finetune"] == layers["lora"] == []
    assert layers["patcher"] == [3]  # the last block
    assert weightsmith("run", "--stage", "eval", *flags_of(run_copy)).status == 0
    report = (run_copy / "evaluation_report.csv").read_text()
    assert all(f"\n{name},held_out,efficacy" in report for name in editors())
