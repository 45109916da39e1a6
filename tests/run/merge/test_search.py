"""`weightsmith merge --data-path`: the coefficient that data choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.run.conftest import assert_refused
from weightsmith.data.sources import open_data
from weightsmith.evaluate import answers_of
from weightsmith.files import read_csv
from weightsmith.models import load
from weightsmith.run.judges import Judge, with_backbone
from weightsmith.run.merge import search
from weightsmith.run.recorded import recorded_split

COEFFICIENTS = ("0", "0.5", "1")


def flags(finished: Path, tuned: tuple[Path, dict[str, Path]], out: Path, *names: str) -> list[object]:
    runs, data = tuned
    return [
        "merge", "--base", finished, "--models", *(runs / name for name in names), "--data-path",
        *(data[name] for name in names), "--coefficients", *COEFFICIENTS, "--out", out, "--head", "base", "--cache-dir",
        out.parent / "cache", "--device", "cpu",
    ]  # fmt: skip


def test_two_tasks_are_added(weightsmith, drawn: None, finished: Path, tuned, tmp_path: Path) -> None:
    done = weightsmith(*flags(finished, tuned, tmp_path / "out", "rows", "columns"), "--control-data-path", "digits",
                       "--control-keep", 0)  # fmt: skip
    assert done.status == 0, done.err
    runs, _ = tuned
    rows = read_csv(tmp_path / "out" / "search.csv")
    assert [(row["coefficient"], row["role"]) for row in rows[:3]] == [
        ("0.0", "task"),
        ("0.0", "task"),
        ("0.0", "control"),
    ]
    assert len(rows) == 9
    scores = {float(row["coefficient"]): float(row["score"]) for row in rows}
    best = max(scores, key=lambda value: (scores[value], -value))
    assert {float(row["coefficient"]) for row in rows if row["chosen"] == "True"} == {best}
    assert best > 0, "adding both tasks must help: the base knows neither"
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["search"]["coefficient"] == best == report["parameters"]["lambda"]
    assert (tmp_path / "out" / "search.png").stat().st_size > 5000
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 3
    assert f"The coefficient {best:g} was chosen on validation data among 3." in page
    assert f"merged, at {best:g}" in done.out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"merged, at {best:g}" in card
    assert "nothing was measured" not in card

    plain = weightsmith("merge", "--base", finished, "--models", runs / "rows", runs / "columns", "--lambda", best, "--head",
                        "base", "--out", tmp_path / "plain")  # fmt: skip
    assert plain.status == 0, plain.err
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_the_test_accuracies_are_those_of_the_written_weights_under_each_head(
    weightsmith, finished: Path, tuned, tmp_path: Path
) -> None:
    assert weightsmith(*flags(finished, tuned, tmp_path / "out", "rows", "columns")).status == 0
    runs, data = tuned
    merged = load(tmp_path / "out")
    for name in ("rows", "columns"):
        source, model = open_data(str(data[name])), load(runs / name)
        recorded = recorded_split(str(runs / name), source)
        assert recorded is not None
        test = recorded.part("held_out", source)
        judge = Judge(source.name, model, recorded.part("val", source), test)
        wanted = {
            "own": model,
            "merged": with_backbone(judge, merged).model,
            "base": with_backbone(judge, load(finished)).model,
        }
        for row in read_csv(tmp_path / "out" / "search_test.csv"):
            if row["data"] == source.name:
                assert float(row["test_accuracy"]) == pytest.approx(
                    answers_of(wanted[row["backbone"]], test).accuracy, abs=1e-6
                )


def test_sealed_images_are_read_for_the_choice_alone_and_nothing_twice(
    weightsmith, finished: Path, tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, validated = [], []
    on_test, on_validation = search.on_test, search.on_validation
    monkeypatch.setattr(search, "on_test", lambda one: tested.append(one.name) or on_test(one))
    monkeypatch.setattr(search, "on_validation", lambda one: validated.append(one.name) or on_validation(one))
    call = [*flags(finished, tuned, tmp_path / "out", "rows", "columns"), "--overwrite"]
    assert weightsmith(*call).status == 0
    assert sorted(tested) == ["columns.npz"] * 3 + ["rows.npz"] * 3  # base, own, merged
    assert len(validated) == 2 * (1 + len(COEFFICIENTS))
    first = (tmp_path / "out" / "search.csv").read_bytes()
    assert weightsmith(*call).status == 0  # everything is known by now
    assert (len(tested), len(validated)) == (6, 8)
    assert (tmp_path / "out" / "search.csv").read_bytes() == first
    cell = next((tmp_path / "cache" / "merge-search").iterdir())
    cell.write_text("{")
    again = weightsmith(*call)
    assert again.status == 0
    assert "is damaged and measured again" in again.err
    assert len(tested) + len(validated) == 15


def test_a_task_is_taken_away_under_a_control(weightsmith, finished: Path, tuned, tmp_path: Path) -> None:
    call = [*flags(finished, tuned, tmp_path / "out", "rows"), "--weights", "-1", "--control-data-path", "digits"]
    done = weightsmith(*call)
    assert done.status == 0, done.err
    rows = read_csv(tmp_path / "out" / "search.csv")
    control = {row["coefficient"]: row for row in rows if row["role"] == "control"}
    chosen = next(row for row in rows if row["chosen"] == "True" and row["role"] == "task")
    least = 0.95 * float(control["0.0"]["val_accuracy"])
    allowed = [
        row for row in rows if row["role"] == "task" and float(control[row["coefficient"]]["val_accuracy"]) >= least
    ]
    assert all((row["allowed"] == "True") == (row in allowed) for row in rows if row["role"] == "task")
    assert float(chosen["val_accuracy"]) == min(float(row["val_accuracy"]) for row in allowed)


def test_a_merged_head_is_judged_as_it_is(weightsmith, tuned, tmp_path: Path) -> None:
    runs, data = tuned
    done = weightsmith(
        "merge", "--base", runs / "rows", "--models", runs / "columns", "--data-path", data["columns"], "--control-data-path",
        data["rows"], "--control-keep", 0, "--coefficients", 0, 1, "--out", tmp_path / "out", "--cache-dir", tmp_path / "cache",
        "--judging-images", 30, "--device", "cpu",
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = {(row["coefficient"], row["role"]): row for row in read_csv(tmp_path / "out" / "search.csv")}
    assert {row["val_n"] for row in rows.values()} == {"30"}
    assert (
        rows["1.0", "task"]["val_accuracy"] == rows["1.0", "task"]["reference"]
    )  # the whole way to the model, head and all
    assert rows["0.0", "control"]["val_accuracy"] == rows["0.0", "control"]["reference"]


def test_flags_of_a_search_want_data(weightsmith, finished: Path, tuned, tmp_path: Path) -> None:
    runs, _ = tuned
    outcome = weightsmith(
        "merge", "--base", finished, "--models", runs / "rows", "--coefficients", "0.5", "--out", tmp_path / "out"
    )
    assert_refused(outcome, ["--coefficients", "--data-path"])
