"""`weightsmith compare`: cells on the same draws, kept as they are measured, for language models and for images."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

import weightsmith as ws
from tests.forked import forked
from tests.run.conftest import assert_refused, undrawn
from weightsmith import cli
from weightsmith.data.facts import read_facts
from weightsmith.delta import weights_hash
from weightsmith.edit import make_editor
from weightsmith.edit.hyperparameters import read_hyperparameters
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.measure import Interval
from weightsmith.run.cells import Cell, failures
from weightsmith.run.compare import benches
from weightsmith.run.compare.benches import ImageBench, TextBench, first
from weightsmith.run.compare.draws import Plan, content_hash, named_apart, signed

FIGURES = (
    "efficacy_success_by_method", "paraphrase_success_by_method", "neighborhood_specificity_by_method",
    "composite_score_by_method", "composite_score_by_batch_size",
)  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flags_of(talker: Path, runs: Path, *more: object) -> list[object]:
    """Flags of a comparison of a language model that takes seconds."""
    given = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    files = ["--hparams", talker / "memit.yaml", talker / "finetune.yaml"]
    quick = ["--methods", "memit", "finetune", *files, "--batch-sizes", 1, 3, "--seeds", 0, 1]
    return [*given, *quick, "--runs-dir", runs, "--device", "cpu", "--cache-dir", runs / "cache", *more]


@pytest.fixture(scope="module", autouse=True)
def _short_texts() -> Iterator[None]:
    """Texts of which the fluency is measured are a few words, which take a tenth of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benches, "_TEXT_TOKENS", 8)
        yield


@pytest.fixture(scope="module")
def compared(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison on the small language model; do not write into it."""
    runs = tmp_path_factory.mktemp("compared")
    with undrawn():
        cli.main(["compare", *map(str, flags_of(talker, runs, "--run-name", "c"))])
    return runs / "c"


@pytest.fixture(scope="module")
def pictured(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison on the classifier of the finished run; do not write into it."""
    runs = tmp_path_factory.mktemp("pictured")
    given = [
        "--model",
        finished,
        "--data-path",
        "digits",
        "--methods",
        "alphaedit",
        "rome",
        "--batch-sizes",
        1,
        4,
        10_000,
    ]
    with undrawn():
        cli.main(
            ["compare", *map(str, [*given, "--seeds", 0, 1, "--n-views", 2, "--runs-dir", runs, "--run-name", "c"])]
        )
    return runs / "c"


# --- what a comparison leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compared", "pictured"])
def test_a_run_is_one_folder(compared: Path, pictured: Path, kind: str) -> None:
    run = {"compared": compared, "pictured": pictured}[kind]
    rows = rows_of(run / "baseline_comparison.csv")
    methods = ("memit", "finetune") if kind == "compared" else ("alphaedit", "rome")
    sizes = (1, 3) if kind == "compared" else (1, 4)
    assert [(row["method"], int(row["batch_size"]), int(row["seed"])) for row in rows] == list(
        product(methods, sizes, (0, 1))
    )
    assert len(list((run / "cells").iterdir())) == len(rows) == 8
    assert not any(row["error"] for row in rows)
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ("efficacy", "paraphrase", "neighbourhood", "composite"))
        assert float(row["seconds"]) > 0
        assert float(row["update_norm"]) > 0
    table = rows_of(run / "comparison_table.csv")
    assert [(row["method"], int(row["batch_size"]), row["seeds"]) for row in table] == [
        (method, size, "2") for method, size in product(methods, sizes)
    ]
    mean = sum(float(row["efficacy"]) for row in rows[:2]) / 2
    assert float(table[0]["efficacy"]) == pytest.approx(mean, abs=1e-6)
    assert sorted(path.stem for path in (run / "figures").iterdir()) == sorted(FIGURES)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 8
    assert "<img" not in page
    assert "https://" not in page
    assert not list(run.rglob("*.tmp"))


def test_draws_are_fixed_nested_and_the_same_for_every_method(compared: Path, talker: Path) -> None:
    plan = Plan.load(compared / "comparison.json")
    assert json.loads((compared / "comparison.json").read_text())["format"] == "weightsmith-comparison-1"
    assert plan.fingerprint == ws.load(talker / "model").fingerprint()
    assert plan.methods["memit"]["steps"] == 12
    by_name = {fact.name: fact for fact in read_facts(compared / "requests.json")}
    assert {name for drawn in plan.draws.values() for name, _ in drawn} == set(by_name)
    assert plan.draws[0] != plan.draws[1]
    for drawn in plan.draws.values():
        assert [content_hash(by_name[name]) for name, _ in drawn] == [content for _, content in drawn]
    for seed in (0, 1):
        assert [name for name, _ in plan.draws[seed]] == [
            fact.name for fact in read_facts(talker / "facts.json", 3, seed)
        ]


def test_a_cell_is_what_one_measures_by_hand(compared: Path, talker: Path) -> None:
    model = ws.load(talker / "model")
    plan = Plan.load(compared / "comparison.json")
    by_name = {fact.name: fact for fact in read_facts(compared / "requests.json")}
    requests = [by_name[name] for name, _ in plan.draws[1]][:3]
    _, fields, _ = read_hyperparameters(talker / "finetune.yaml")
    delta = make_editor("finetune", **fields).solve(model, requests, ws.data.TextSet.of(["unused"], model.tokenize))
    report = ws.evaluate.knowledge(model, requests, delta, generate=False)
    row = next(
        row for row in rows_of(compared / "baseline_comparison.csv")
        if (row["method"], row["batch_size"], row["seed"]) == ("finetune", "3", "1")
    )  # fmt: skip
    for name, interval in ws.evaluate.headline(report).items():
        assert float(row[name]) == pytest.approx(interval.value, abs=1e-6)
        assert float(row[f"{name}_low"]) == pytest.approx(interval.low, abs=1e-6)
    assert float(row["efficacy_accuracy"]) == pytest.approx(report.scores_after.accuracy.rewrite.value)
    assert float(row["update_norm"]) == pytest.approx(delta.norm(), rel=1e-3)
    assert float(row["perplexity_before"]) > 1
    assert float(row["drift"]) > 0
    assert float(row["fluency"]) >= 0


def test_images_come_from_validation_and_are_proven_on_held_out(pictured: Path, finished: Path) -> None:
    plan = Plan.load(pictured / "comparison.json")
    recorded = json.loads((finished / "data_split.json").read_text())["parts"]
    assert plan.held_out == recorded["held_out"]["sha256"]
    assert plan.preserve == recorded["train"]["sha256"]
    assert plan.batch_sizes == (1, 4)
    assert "10000 edits are left out" in plan.notes[0]
    split = ws.data.digits().split(0.2, 42, 0.3)
    assert {name for drawn in plan.draws.values() for name, _ in drawn} <= set(split.val.names())
    row = rows_of(pictured / "baseline_comparison.csv")[0]
    assert row.keys() >= {"repaired", "net_accuracy_change", "accuracy"}
    assert "perplexity" not in row
    log = (pictured / "log.txt").read_text()
    assert "10000 edits are left out" in log


def test_the_terminal_shows_the_table(weightsmith, compared: Path) -> None:
    outcome = weightsmith("compare", "--runs-dir", compared.parent, "--run-name", "c", "--resume")
    assert outcome.status == 0, outcome.err
    assert "Means over draws" in outcome.out
    assert "composite" in outcome.out
    assert str(compared / "report.html") in outcome.out
    assert "8 of 8 cells are measured already" in (compared / "log.txt").read_text()


# --- stopped, resumed, failed ---------------------------------------------------------------------------------------


def stays_behind_the_second_cell() -> None:
    real, count = Cell.save, []

    def save(cell: Cell, folder: Path) -> None:
        real(cell, folder)
        count.append(cell)
        while len(count) == 2:
            time.sleep(1)

    Cell.save = save  # type: ignore[method-assign]  # in its process alone


def test_a_killed_comparison_measures_no_cell_twice(weightsmith, talker: Path, compared: Path, tmp_path: Path) -> None:
    cells, flags = tmp_path / "c" / "cells", flags_of(talker, tmp_path, "--run-name", "c")
    with forked(tmp_path / "said", "compare", *flags, slowed=stays_behind_the_second_cell) as command:
        command.until(lambda: len(list(cells.glob("*.json"))) == 2)
        command.kill()
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert len(done) == 2
    # Nothing but the name is needed to go on.
    outcome = weightsmith("compare", "--runs-dir", tmp_path, "--run-name", "c", "--resume")
    assert outcome.status == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert f"{len(done)} of 8 cells are measured already" in (tmp_path / "c" / "log.txt").read_text()
    mine, theirs = (rows_of(run / "baseline_comparison.csv") for run in (tmp_path / "c", compared))
    for row in (*mine, *theirs):
        del row["seconds"]
    assert mine == theirs


def test_a_cell_that_fails_does_not_end_the_comparison(weightsmith, talker: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({"method": "rome", "layers": [0, 1]}))
    given = flags_of(talker, tmp_path, "--run-name", "c", "--methods", "rome", "finetune", "--batch-sizes", 2)
    outcome = weightsmith("compare", *given, "--hparams", tmp_path / "wide.yaml", talker / "finetune.yaml")
    assert outcome.status == 3, outcome.err
    assert "rome, 2 edits, seed 0 failed: ROME edits one layer" in outcome.out
    rows = rows_of(tmp_path / "c" / "baseline_comparison.csv")
    assert [bool(row["error"]) for row in rows] == [True, True, False, False]
    assert rows[0]["efficacy"] == rows[0]["seconds"] == ""
    assert "ROME edits one layer" in (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    table = rows_of(tmp_path / "c" / "comparison_table.csv")
    assert table[0]["efficacy"] == ""
    assert table[1]["efficacy"] != ""


@pytest.mark.parametrize(
    ("failure", "status"), [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_stops_the_comparison_keeps_its_cells(
    weightsmith, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, status: int
) -> None:
    real, count = Cell.save, []

    def saving(cell: Cell, folder: Path) -> None:
        if len(count) == 2:
            raise failure
        count.append(cell)
        real(cell, folder)

    given = flags_of(talker, tmp_path, "--run-name", "c", "--methods", "finetune")
    given = [word for word in given if word != talker / "memit.yaml"]  # a file of another method
    with monkeypatch.context() as patched:
        patched.setattr(Cell, "save", saving)
        assert weightsmith("compare", *given).status == status
    assert len(list((tmp_path / "c" / "cells").glob("*.json"))) == 2
    assert weightsmith("compare", *given, "--resume").status == 0


def test_held_out_images_are_never_a_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be asked for by mistake: that ends the comparison."""
    errors: list[str] = []
    with pytest.raises(HeldOutError), failures(errors):
        raise HeldOutError("asked for too early")
    with failures(errors):
        raise WeightsmithError("it cannot be done")
    assert errors == ["it cannot be done"]


def test_a_damaged_cell_is_measured_again(tmp_path: Path) -> None:
    cell = Cell("memit", 8, 0, "key", {"efficacy": Interval(0.5, float("nan"), 1.0, 8)}, 1.5, float("inf"), 0.5)
    cell.save(tmp_path)
    path = tmp_path / "memit-8-0.json"
    found = Cell.load(path, "key")
    assert found is not None
    assert str(found) == str(cell)  # NaN is not NaN
    assert Cell.load(path, "another key") is None
    assert Cell.load(tmp_path / "absent.json", "key") is None
    for content in ("{", "[]", path.read_text().replace("0.5", '"x"'), path.read_text().replace("efficacy", "e")[:90]):
        (tmp_path / "damaged.json").write_text(content)
        assert Cell.load(tmp_path / "damaged.json", "key") is None


# --- the same requests again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["folder", "file"])
def test_requests_of_an_earlier_comparison(
    weightsmith, compared: Path, talker: Path, tmp_path: Path, named: str
) -> None:
    requests = compared if named == "folder" else compared / "comparison.json"
    given = ["--model", talker / "model", "--preserve", talker / "text.txt", "--runs-dir", tmp_path, "--run-name", "c"]
    again = ["--requests", requests, "--methods", "finetune", "--hparams", talker / "finetune.yaml"]
    outcome = weightsmith("compare", *given, *again, "--cache-dir", tmp_path / "cache")
    assert outcome.status == 0, outcome.err
    assert Plan.load(tmp_path / "c" / "comparison.json").draws == Plan.load(compared / "comparison.json").draws
    before = {row["batch_size"] + row["seed"]: row for row in rows_of(compared / "baseline_comparison.csv")[4:]}
    for row in rows_of(tmp_path / "c" / "baseline_comparison.csv"):
        assert row["composite"] == before[row["batch_size"] + row["seed"]]["composite"]
        assert row["update_norm"] == before[row["batch_size"] + row["seed"]]["update_norm"]


def test_requests_for_images(weightsmith, pictured: Path, finished: Path, tmp_path: Path) -> None:
    given = ["--model", finished, "--data-path", "digits", "--runs-dir", tmp_path, "--run-name", "c", "--n-views", 2]
    outcome = weightsmith("compare", *given, "--requests", pictured, "--methods", "rome", "--batch-sizes", 1)
    assert outcome.status == 0, outcome.err
    before = [
        r for r in rows_of(pictured / "baseline_comparison.csv") if (r["method"], r["batch_size"]) == ("rome", "1")
    ]
    after = rows_of(tmp_path / "c" / "baseline_comparison.csv")
    assert [row["composite"] for row in after] == [row["composite"] for row in before]


def test_requests_that_changed(weightsmith, compared: Path, talker: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "old")
    facts = json.loads((tmp_path / "old" / "requests.json").read_text())
    facts[0]["target"] = "Vienna"
    (tmp_path / "old" / "requests.json").write_text(json.dumps(facts))
    given = flags_of(talker, tmp_path / "runs", "--requests", tmp_path / "old")
    assert_refused(weightsmith("compare", *given), [facts[0]["name"], "not the one that was compared"])
    (tmp_path / "old" / "requests.json").unlink()
    assert_refused(weightsmith("compare", *given), ["--requests", "requests.json"])


def test_the_same_fact_with_another_target_gets_a_name_of_its_own(talker: Path) -> None:
    one, two = read_facts(talker / "facts.json")[:2]
    other = ws.TextRequest(one.name, one.prompt, one.subject, "zither")
    named = named_apart({0: [one, two], 1: [other], 5: [one]})
    assert [fact.name for drawn in named.values() for fact in drawn] == ["a", "b", "a (seed 1)", "a"]
    assert signed(named)[0][0] == signed(named)[5][0]
    assert content_hash(other) != content_hash(one)
    assert content_hash(ws.TextRequest("z", one.prompt, one.subject, "zither")) == content_hash(other)


def test_answers_before_are_asked_once_a_draw(talker: Path) -> None:
    model = ws.load(talker / "model")
    facts = read_facts(talker / "facts.json")
    whole, part = (ws.evaluate.answer(model, facts[:count], new_tokens=5) for count in (6, 2))
    cut = first(whole, 2)
    assert cut.requests == part.requests
    assert cut.questions == part.questions
    assert cut.nll_target == pytest.approx(part.nll_target, abs=1e-6)
    assert cut.said == part.said
    assert cut.texts == part.texts


def test_defaults_of_each_kind(talker: Path, tiny_model: Any) -> None:
    """The head of a language model is solved, that of a classifier descended."""
    text = TextBench.editor(TextBench(ws.load(talker / "model"), {}, None, {}), "head")  # type: ignore[arg-type]
    image = ImageBench.editor(ImageBench(tiny_model("vit"), {}, None, None, "light", 1, {}), "head")  # type: ignore[arg-type]
    assert text.closed_form  # type: ignore[attr-defined]
    assert not image.closed_form  # type: ignore[attr-defined]


# --- bad input ------------------------------------------------------------------------------------------------------


def test_images_and_texts_are_not_mixed(
    weightsmith, finished: Path, talker: Path, pictured: Path, tmp_path: Path
) -> None:
    runs = ["--runs-dir", tmp_path / "runs"]
    assert_refused(weightsmith("compare", "--model", finished, *runs), ["image classifier", "--data-path"])
    given = ["--model", finished, "--data-path", "digits", *runs]
    assert_refused(weightsmith("compare", *given, "--preserve", talker / "text.txt"), ["--preserve is of text"])
    assert_refused(weightsmith("compare", *flags_of(talker, tmp_path / "runs", "--requests", pictured)), ["--requests"])


def test_a_model_that_changed_is_not_gone_on_with(weightsmith, compared: Path, talker: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(compared, tmp_path / "c")
    shutil.copytree(talker / "model", tmp_path / "model")
    config = yaml.safe_load((tmp_path / "c" / "config.yaml").read_text())
    (tmp_path / "c" / "config.yaml").write_text(yaml.safe_dump(config | {"model": str(tmp_path / "model")}))
    go_on = ["compare", "--runs-dir", tmp_path, "--run-name", "c", "--resume"]
    assert weightsmith(*go_on).status == 0
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    module.transformer.ln_f.weight.data.mul_(1.5)
    module.save_pretrained(tmp_path / "model")
    assert_refused(weightsmith(*go_on), ["another model", "--overwrite"])


def test_the_model_is_left_as_it_was(talker: Path, compared: Path) -> None:
    assert json.loads((compared / "env.json").read_text())["weights"] == weights_hash(ws.load(talker / "model"))
