"""`weightsmith edit` and `facts`: every file of a run, models of every make, and bad input by its sentence."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import weightsmith as ws
from tests.run.conftest import assert_refused, undrawn
from weightsmith import cli, mapped
from weightsmith.data.facts import read_facts
from weightsmith.data.factworld import FactWorld
from weightsmith.delta import Delta, weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.models import save
from weightsmith.run.folder import RunFolder
from weightsmith.run.knowledge.edit import KIN
from weightsmith.run.knowledge.facts import world_of
from weightsmith.run.options.knowledge import EditOptions


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def events(run: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(line["stage"], line["event"]) for line in lines]


def flags_of(talker: Path, runs: Path, *more: object, model: Path | None = None) -> list[object]:
    """Flags of an edit that takes a second or two."""
    given = [
        "--model",
        model or talker / "model",
        "--data-path",
        talker / "facts.json",
        "--preserve",
        talker / "text.txt",
    ]
    return [*given, "--runs-dir", runs, "--device", "cpu", "--cache-dir", runs / "cache", *more]


def left_by(run: Path) -> list[Path]:
    """What a run has measured."""
    return KIN.measured(RunFolder.named(EditOptions(runs_dir=str(run.parent)), run.name))


QUICK = ("--edit-method", "memit", "finetune", "--max-edits", 3)


@pytest.fixture(scope="session")
def edited(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two methods; do not write into it."""
    runs = tmp_path_factory.mktemp("edited")
    given = flags_of(talker, runs, "--run-name", "e", *QUICK, "--hparams", talker / "memit.yaml")
    with undrawn():
        cli.main(["edit", *map(str, given)])
    return runs / "e"


# --- what a run leaves ----------------------------------------------------------------------------------------------


def test_a_run_is_one_folder(edited: Path) -> None:
    assert yaml.safe_load((edited / "config.yaml").read_text())["edit_method"] == ["memit", "finetune"]
    assert json.loads((edited / "env.json").read_text()).keys() >= {"packages", "device", "weights", "seed", "preserve"}
    assert events(edited) == [("edit", "start"), ("edit", "done")]
    assert not list(edited.rglob("*.tmp"))


@pytest.mark.skipif(not mapped.can_map(), reason="only Linux tells which pages of a file were written to")
def test_weights_left_on_the_disk_are_edited_to_the_same_bytes(edited: Path, talker: Path, tmp_path: Path) -> None:
    given = flags_of(
        talker, tmp_path, "--run-name", "e", *QUICK, "--hparams", talker / "memit.yaml", "--device", "disk"
    )
    cli.main(["edit", *map(str, given)])
    for name in (
        "delta.safetensors",
        "delta_finetune.safetensors",
        "knowledge_report.csv",
        "answers.csv",
        "memit_edit_log.csv",
    ):
        assert (tmp_path / "e" / name).read_bytes() == (edited / name).read_bytes(), name


def test_requests_come_back(edited: Path, talker: Path) -> None:
    assert read_facts(edited / "requests.json") == read_facts(talker / "facts.json", 3, 42)


def test_the_log_and_the_deltas_are_those_of_each_method(edited: Path, talker: Path) -> None:
    model = ws.load(talker / "model")
    for method, delta in (("memit", "delta.safetensors"), ("finetune", "delta_finetune.safetensors")):
        rows = rows_of(edited / f"{method}_edit_log.csv")
        assert len(rows) == 3
        assert rows[0].keys() >= {"sample", "answer_before", "target", "answer_after", "layers", "success"}
        found = Delta.load(edited / delta)
        assert found.base == weights_hash(model)
        assert found.info["method"] == method
        assert float(rows[0]["update_norm"]) == pytest.approx(found.norm(), rel=1e-5)
    assert {row["layers"] for row in rows_of(edited / "memit_edit_log.csv")} == {"1"}
    assert Delta.load(edited / "delta.safetensors").info["options"]["steps"] == 12


def test_the_edited_model_loads_in_plain_transformers(edited: Path, talker: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(edited / "edited")
    tokenizer = AutoTokenizer.from_pretrained(edited / "edited")
    ids = tokenizer("Anna plays the", return_tensors="pt").input_ids
    model = ws.load(talker / "model")
    delta = Delta.load(edited / "delta.safetensors")
    with torch.no_grad(), delta.on(model):
        expected = model.token_logits(ids)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, expected, atol=1e-5)
        assert not torch.allclose(expected, model.token_logits(ids), atol=1e-5)
    assert "| memit | 1 | 3 |" in (edited / "edited" / "README.md").read_text()


def test_the_report_has_each_measure_before_and_after(edited: Path, talker: Path) -> None:
    rows = {(row["method"], row["measure"]): row for row in rows_of(edited / "knowledge_report.csv")}
    for method in ("memit", "finetune"):
        for measure in (
            "efficacy",
            "paraphrase",
            "neighbourhood",
            "score",
            "efficacy_accuracy",
            "fluency",
            "perplexity",
        ):
            row = rows[method, measure]
            assert float(row["before"]) >= 0
            assert float(row["after"]) >= 0
        assert rows[method, "efficacy"]["before_low"] != ""
        assert float(rows[method, "drift"]["after"]) > 0
        assert rows[method, "drift"]["before"] == ""
    assert rows["memit", "perplexity"]["before"] == rows["finetune", "perplexity"]["before"]
    model = ws.load(talker / "model")
    requests = read_facts(edited / "requests.json")
    measured = ws.evaluate.knowledge(model, requests, Delta.load(edited / "delta_finetune.safetensors"), generate=False)
    assert float(rows["finetune", "efficacy"]["after"]) == pytest.approx(measured.efficacy.value)
    assert float(rows["finetune", "neighbourhood_magnitude"]["after"]) == pytest.approx(
        measured.scores_after.magnitude.neighbour.value, abs=1e-5
    )


def test_each_answer_is_told(edited: Path) -> None:
    rows = rows_of(edited / "answers.csv")
    assert len(rows) == 6
    assert rows[0].keys() >= {"method", "name", "answer_before", "answer_after", "text", "p_target_after"}
    assert all(row["text"] for row in rows)
    assert all(
        float(row["p_target_after"]) > float(row["p_target_before"]) for row in rows if row["method"] == "finetune"
    )


# --- resuming and redoing -------------------------------------------------------------------------------------------


def test_the_page_has_the_measures_and_each_fact(edited: Path) -> None:
    page = (edited / "report.html").read_text(encoding="utf-8")
    assert all(f'<section id="{name}"' in page for name in ("summary", "measures", "facts", "provenance"))
    took = [float(row["es_after"]) > 0.5 for row in rows_of(edited / "answers.csv") if row["method"] == "memit"]
    for good, word in ((True, "taken"), (False, "not taken")):
        count = took.count(good)
        assert (f">memit: {count} {word}<" in page) is (count > 0)
    assert "https://" not in page


def test_an_existing_run_is_refused_redone_or_gone_on_with(
    weightsmith, edited: Path, talker: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(edited, tmp_path / "e"))
    given = flags_of(talker, tmp_path, "--run-name", "e", "--edit-method", "finetune", "--max-edits", 2)
    assert all(word in weightsmith("edit", *given).err for word in ("--resume", "--overwrite"))
    refused = weightsmith("edit", *given, "--resume", "--hparams", talker / "memit.yaml")
    assert "--edit-method memit finetune, --max-edits 3" in refused.err
    assert weightsmith("edit", "--runs-dir", tmp_path, "--run-name", "e", "--resume", "--seed", 1).status == 1
    assert weightsmith("edit", *given, "--overwrite").status == 0
    assert {path.name for path in left_by(run)} == {
        "requests.json", "finetune_edit_log.csv", "knowledge_report.csv", "answers.csv", "summary.json",
        "delta.safetensors", "edited", "report.html",
    }  # fmt: skip


def test_a_yaml_file_says_the_same(weightsmith, edited: Path, talker: Path, tmp_path: Path) -> None:
    asked = yaml.safe_load((edited / "config.yaml").read_text()) | {"runs_dir": str(tmp_path), "run_name": "again"}
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    assert weightsmith("edit", "--config", tmp_path / "asked.yaml").status == 0
    for name in ("requests.json", "answers.csv", "knowledge_report.csv", "memit_edit_log.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (edited / name).read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "full")])
def test_what_is_stopped_leaves_nothing_half_done(
    weightsmith, edited: Path, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    run = Path(shutil.copytree(edited, tmp_path / "e"))
    before = {path.name: path.read_bytes() for path in left_by(run) if path.is_file()}

    def failing(*_: object) -> None:
        raise failure

    monkeypatch.setattr("weightsmith.run.knowledge.edit.save", failing)
    given = flags_of(talker, tmp_path, "--run-name", "e", "--edit-method", "finetune", "--max-edits", 2, "--overwrite")
    assert weightsmith("edit", *given).status == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    assert {path.name: path.read_bytes() for path in left_by(run) if path.is_file()} == before


# --- models of every make -------------------------------------------------------------------------------------------


def test_half_precision_and_shards(weightsmith, talker: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(talker / "model", tmp_path / "model")
    module = AutoModelForCausalLM.from_pretrained(talker / "model").to(torch.bfloat16)
    (tmp_path / "model" / "model.safetensors").unlink()
    module.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    given = flags_of(talker, tmp_path, "--run-name", "e", "--edit-method", "memit", "--max-edits", 2)
    hparams = ["--model", tmp_path / "model", "--hparams", talker / "memit.yaml"]
    outcome = weightsmith("edit", *given, *hparams)
    assert outcome.status == 0, outcome.err
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "e" / "edited")
    assert edited.dtype == torch.bfloat16
    changed = [
        name for name, weight in edited.state_dict().items() if not torch.equal(weight, module.state_dict()[name])
    ]
    assert changed == ["transformer.h.1.mlp.c_proj.weight"]


def test_repeated_requests_are_named(weightsmith, talker: Path, tmp_path: Path) -> None:
    facts = json.loads((talker / "facts.json").read_text())
    (tmp_path / "facts.json").write_text(json.dumps([facts[0], facts[1], facts[0] | {"name": "twin"}]))
    given = flags_of(
        talker, tmp_path, "--edit-method", "finetune", "--data-path", tmp_path / "facts.json", "--run-name", "e"
    )
    outcome = weightsmith("edit", *given)
    assert outcome.status == 0, outcome.err
    assert "Left out, because asked for already: " in outcome.out
    assert len(read_facts(tmp_path / "e" / "requests.json")) == 2
    log = (tmp_path / "e" / "log.txt").read_text()
    assert "twin" in log
    assert "is left out" in log


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_preserved_must_be_said(weightsmith, talker: Path, tmp_path: Path) -> None:
    given = ["--model", talker / "model", "--data-path", talker / "facts.json", "--runs-dir", tmp_path / "runs"]
    assert_refused(weightsmith("edit", *given), ["--preserve", "UTF-8"])


def test_a_model_without_a_tokenizer(weightsmith, talker: Path, tmp_path: Path) -> None:
    shutil.copytree(talker / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"))
    assert_refused(weightsmith("edit", *flags_of(talker, tmp_path / "runs", model=tmp_path / "model")), ["tokenizer"])


def test_an_image_model_is_sent_to_its_own_command(weightsmith, talker: Path, tmp_path: Path, tiny_model) -> None:
    save(tiny_model("vit"), tmp_path / "vit")
    outcome = weightsmith("edit", *flags_of(talker, tmp_path / "runs", model=tmp_path / "vit"))
    assert_refused(outcome, ["weightsmith run", "--checkpoint", "--edit-from"])


# --- the fact world -------------------------------------------------------------------------------------------------


def test_facts_leaves_the_world_and_its_model(knowing: Path, small_world: Callable[..., FactWorld]) -> None:
    assert events(knowing) == [("facts", "start"), ("facts", "done")]
    for inside in ("", "model"):
        world = world_of(knowing / inside)
        assert world is not None
        assert world.fingerprint() == small_world().fingerprint()
    assert world_of(knowing.parent) is None
    recalled = json.loads((knowing / "recall.json").read_text())
    assert recalled["trained"]["all"]["n"] == len(small_world().facts)
    assert yaml.safe_load((knowing / "config.yaml").read_text())["seed"] == 0


def test_a_finished_facts_run_is_not_trained_again(weightsmith, knowing: Path, tmp_path: Path) -> None:
    shutil.copytree(knowing, tmp_path / "facts")
    trained = (tmp_path / "facts" / "checkpoint.pt").stat().st_mtime_ns
    assert weightsmith("facts", "--runs-dir", tmp_path, "--run-name", "facts").status == 1
    outcome = weightsmith("facts", "--runs-dir", tmp_path, "--run-name", "facts", "--resume")
    assert outcome.status == 0, outcome.err
    assert "Share of the facts that the model recalls" in outcome.out
    assert (tmp_path / "facts" / "checkpoint.pt").stat().st_mtime_ns == trained
    refused = weightsmith("facts", "--runs-dir", tmp_path, "--run-name", "facts", "--resume", "--seed", 1)
    assert "--seed 0" in refused.err


def test_auto_takes_the_run_of_facts(weightsmith, knowing: Path, tmp_path: Path) -> None:
    shutil.copytree(knowing, tmp_path / "facts")
    given = [
        "--runs-dir",
        tmp_path,
        "--run-name",
        "e",
        "--edit-method",
        "finetune",
        "--max-edits",
        2,
        "--device",
        "cpu",
    ]
    outcome = weightsmith("edit", *given)
    assert outcome.status == 0, outcome.err
    world = world_of(knowing)
    assert world is not None
    assert read_facts(tmp_path / "e" / "requests.json") == world.requests(2, 42)
    assert json.loads((tmp_path / "e" / "env.json").read_text())["weights"] == weights_hash(ws.load(knowing))


def test_a_changed_world_is_refused(knowing: Path, tmp_path: Path) -> None:
    shutil.copytree(knowing, tmp_path / "facts")
    path = tmp_path / "facts" / "facts.json"
    entries = json.loads(path.read_text())
    entries["facts"][0]["object"] = "Atlantis"
    path.write_text(json.dumps(entries))
    with pytest.raises(WeightsmithError, match="changed since it was made"):
        world_of(tmp_path / "facts")
    path.write_text("{")
    with pytest.raises(WeightsmithError, match="is damaged"):
        world_of(tmp_path / "facts")
