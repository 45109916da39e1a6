"""`weightsmith ablate`: trials on the same draws, kept as they are measured, for language models and for images."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import weightsmith as ws
from tests.run.conftest import assert_refused
from weightsmith import cli
from weightsmith.adapters import transposed_weights
from weightsmith.data.facts import read_facts
from weightsmith.delta import weights_hash
from weightsmith.edit import make_editor
from weightsmith.edit.lora_native import LoRAOptions, adapted
from weightsmith.measure import Interval
from weightsmith.run.ablate.lora import answer_logits, ranks_of, whole_error
from weightsmith.run.ablate.replay import replayed_by
from weightsmith.run.ablate.trials import Trial, titled
from weightsmith.run.compare.draws import Plan
from weightsmith.run.knowledge.language import Kept
from weightsmith.stream import ReplayOptions, Stream

LORA = ["lora", "--ranks", 1, 64, "--fit-steps", 0, 3, "--max-edits", 3]
REPLAY = ["replay", "--max-edits", 6, "--batch-size", 2, "--buffers", 2, "--strategies", "random", "recent"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flags_of(talker: Path, runs: Path, *more: object) -> list[object]:
    """Flags of an ablation of a language model that takes seconds."""
    given = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    quick = ["--edit-method", "memit", "--hparams", talker / "memit.yaml", "--device", "cpu"]
    return [*given, *quick, "--runs-dir", runs, "--cache-dir", runs / "cache", "--run-name", "a", *more]


def ablated(talker: Path, runs: Path, flags: list[Any]) -> Path:
    cli.main(["ablate", *map(str, [*flags, *flags_of(talker, runs)])])
    return runs / "a"


@pytest.fixture(scope="session")
def adapters(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation of adapters on the small language model; do not write into it."""
    return ablated(talker, tmp_path_factory.mktemp("adapters"), LORA)


@pytest.fixture(scope="session")
def streams(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation of replay on the small language model; do not write into it."""
    return ablated(talker, tmp_path_factory.mktemp("streams"), REPLAY)


@pytest.fixture
def told(talker: Path) -> Callable[..., tuple[ws.Model, list[ws.TextRequest], ws.data.TextSet, Any]]:
    """`told(count)`: the small language model, the first facts of draw 0, its text as editors get it, and its editor."""

    def make(count: int) -> tuple[ws.Model, list[ws.TextRequest], ws.data.TextSet, Any]:
        model = ws.load(talker / "model")
        kept = Kept.of(model, [str(talker / "text.txt")], None)
        fields = {"layers": (1,), "steps": 12, "rounds": 1, "prefix_lengths": ((4, 1),)}
        facts = read_facts(talker / "facts.json", count, 0)
        return model, facts, kept.preserve, make_editor("memit", **fields)

    return make


def assert_figures(run: Path, names: list[str]) -> None:
    """The figures are there, and no blank sheets."""
    assert sorted(path.stem for path in (run / "figures").iterdir()) == sorted(names)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert len(set(re.findall(r">Figure (\d+)\. ", page))) == len(names)
    assert 'svg class="chart"' in page
    for path in (run / "figures").iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 128
        assert (pixels != 255).mean() > 0.01
        assert (pixels[[0, -1]] == 255).all()


# --- adapters -------------------------------------------------------------------------------------------------------


def test_adapters_of_every_rank_and_start(adapters: Path) -> None:
    rows = rows_of(adapters / "lora_native_ablation.csv")
    assert [(row["start"], row["rank"], row["fit_steps"]) for row in rows] == [
        ("raw", "", ""), ("svd", "1", "0"), ("svd", "64", "0"), ("svd", "1", "3"), ("svd", "64", "3"), ("lora", "1", "3"),
        ("lora", "64", "3"),
    ]  # fmt: skip
    assert not any(row["error"] for row in rows)
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ("efficacy", "paraphrase", "neighbourhood", "same_answers"))
        assert float(row["efficacy_low"]) <= float(row["efficacy"]) <= float(row["efficacy_high"])
    raw, small, whole, _, fitted, begun, _ = rows
    assert (raw["reconstruction_error"], raw["same_answers"], raw["largest_logit_difference"]) == ("0.0", "1.0", "0.0")
    assert int(raw["parameters"]) == 24 * 48
    assert int(raw["bytes"]) == 4 * 24 * 48
    assert (small["change_rank"], int(small["parameters"])) == ("1", 24 + 48)
    assert 4 * (24 + 48) < int(small["bytes"]) < 4 * (24 + 48) + 1000, "factors in float32 and a header"
    assert 0 < float(small["reconstruction_error"]) <= float(begun["reconstruction_error"]) < 1
    assert float(small["largest_logit_difference"]) > 1e-3
    for row in (whole, fitted):
        assert float(row["reconstruction_error"]) < 1e-6
        assert row["change_rank"] == raw["change_rank"]
        assert row["efficacy"] == raw["efficacy"]
        assert float(row["largest_logit_difference"]) < 1e-3
    assert_figures(adapters, ["lora_rank_vs_metrics"])
    told = json.loads((adapters / "summary.json").read_text())
    assert told["command"] == "ablate lora"
    assert any("Rank 64 holds the whole edit" in sentence for sentence in told["summary"])
    assert Plan.load(adapters / "comparison.json").methods["memit"]["steps"] == 12


def test_an_adapter_is_what_one_measures_by_hand(adapters: Path, told: Any) -> None:
    model, facts, preserve, editor = told(3)
    raw = editor.solve(model, facts, preserve)
    made, rows = adapted(raw, LoRAOptions(rank=1, tolerance=0.999), transposed=transposed_weights(model.module))
    report = ws.evaluate.knowledge(model, facts, made, generate=False)
    row = rows_of(adapters / "lora_native_ablation.csv")[1]
    for name, interval in ws.evaluate.headline(report).items():
        assert float(row[name]) == pytest.approx(interval.value, abs=1e-6)
    assert float(row["reconstruction_error"]) == pytest.approx((made - raw).norm() / raw.norm(), rel=1e-4)
    assert whole_error(raw, rows) == pytest.approx((made - raw).norm() / raw.norm(), rel=1e-6)
    with raw.on(model):
        before = answer_logits(model, facts)
    with made.on(model):
        after = answer_logits(model, facts)
    largest = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert float(row["largest_logit_difference"]) == pytest.approx(largest, rel=1e-3)


def test_alpha_changes_nothing_but_rounding(weightsmith, adapters: Path, talker: Path, tmp_path: Path) -> None:
    flags = ["lora", "--ranks", 1, "--fit-steps", 0, "--max-edits", 3, "--lora-alpha", 7]
    assert weightsmith("ablate", *flags, *flags_of(talker, tmp_path)).status == 0
    mine = rows_of(tmp_path / "a" / "lora_native_ablation.csv")[1]
    theirs = rows_of(adapters / "lora_native_ablation.csv")[1]
    for name in ("efficacy_magnitude", "largest_logit_difference", "perplexity"):
        assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-3)


def test_logits_of_answers_are_those_of_each_request_alone(told: Any) -> None:
    model, facts, *_ = told(6)
    for fact, found in zip(facts, answer_logits(model, facts), strict=True):
        ids, count = model.tokenize.continued(fact.prompt, fact.target)
        with torch.no_grad():
            alone = model.token_logits(torch.tensor([ids]))[0, len(ids) - count - 1 : len(ids) - 1]
        torch.testing.assert_close(found, alone)


def test_the_rank_of_a_change() -> None:
    left, right = torch.randn(5, 2).double(), torch.randn(2, 7).double()
    change = ws.Delta(
        {"a": ws.LowRank(torch.cat([left, left], 1), torch.cat([right, right])), "b": ws.Dense(left[:, 0])}
    )
    assert ranks_of(change) == [2]


def test_what_cannot_be_edited_is_told(weightsmith, talker: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({"method": "rome", "layers": [0, 1]}))
    flags = ["--edit-method", "rome", "--hparams", tmp_path / "wide.yaml"]
    outcome = weightsmith("ablate", *LORA, *flags_of(talker, tmp_path, *flags))
    assert outcome.status == 3, outcome.err
    assert "raw, seed 0 failed: ROME edits one layer" in outcome.out
    rows = rows_of(tmp_path / "a" / "lora_native_ablation.csv")
    assert all("ROME edits one layer" in row["error"] and row["efficacy"] == "" for row in rows)
    outcome = weightsmith("ablate", *REPLAY, *flags_of(talker, tmp_path, *flags, "--run-name", "b"))
    assert outcome.status == 3, outcome.err
    rows = rows_of(tmp_path / "b" / "replay_ablation.csv")
    assert all("ROME edits one layer" in row["error"] and row["retention_all"] == "" for row in rows)
    assert not (tmp_path / "b" / "forgetting_curve.csv").exists()


# --- streams --------------------------------------------------------------------------------------------------------

SETTINGS = [
    ("none", "", "", "", ""), ("keys", "", "", "", ""),
    ("requests", "0.5", "2", "random", ""), ("requests", "0.5", "2", "recent", ""),
    ("requests", "2.0", "2", "random", ""),
    ("requests", "2.0", "2", "recent", "requests, rate 2, buffer size 2, random"),
]  # fmt: skip


def test_streams_of_every_setting(streams: Path) -> None:
    rows = rows_of(streams / "replay_ablation.csv")
    names = ("kind", "rate", "buffer_size", "strategy", "same_as")
    assert [tuple(row[name] for name in names) for row in rows] == SETTINGS
    assert not any(row["error"] for row in rows)
    curve = rows_of(streams / "forgetting_curve.csv")
    assert len(curve) == 5 * (1 + 2 + 3), "settings that are the same by construction are measured once"
    assert len(list((streams / "cells").glob("*.json"))) == 5
    for row in rows:
        assert row["edits"] == "6"
        assert float(row["update_norm"]) > 0
        assert float(row["cpu_seconds"]) > 0
        mine = [one for one in curve if one["after_batch"] == "3" and all(one[name] == row[name] for name in names[:4])]
        assert bool(mine) == (not row["same_as"])
        if mine:
            assert float(row["retention_first"]) == pytest.approx(int(mine[0]["held"]) / 2)
            assert float(row["retention_all"]) == pytest.approx(sum(int(one["held"]) for one in mine) / 6, abs=1e-6)
            assert float(mine[0]["retention_low"]) < float(mine[0]["retention_high"])
    other, row = rows[-2:]
    assert {k: v for k, v in row.items() if k not in names} == {k: v for k, v in other.items() if k not in names}
    assert_figures(streams, ["forgetting_curve", "replay_ablation"])
    told = json.loads((streams / "summary.json").read_text())["summary"]
    assert any("One setting replays in every batch the same requests" in sentence for sentence in told)


@pytest.mark.parametrize("kind", ["none", "requests"])
def test_a_stream_is_what_one_measures_by_hand(streams: Path, told: Any, kind: str, tmp_path: Path) -> None:
    model, facts, preserve, editor = told(6)
    replay = ReplayOptions(kind=kind, rate=0.5, buffer_size=2, strategy="recent")  # type: ignore[arg-type]
    before = weights_hash(model)
    with Stream(model, editor, preserve, replay=replay, cache_dir=tmp_path) as stream:
        held = []
        for first in (0, 2, 4):
            stream.add(facts[first : first + 2])
            for batch in range(0, first + 1, 2):
                asked = ws.evaluate.answer(model, facts[batch : batch + 2], new_tokens=1)
                held.append(int(asked.by_request("rewrite", asked.exact).sum()))
        delta = stream.delta()
    assert weights_hash(model) == before
    place = 0 if kind == "none" else 3
    wanted = {"none": ("none", "", ""), "requests": ("requests", "2", "recent")}[kind]
    curve = [
        row for row in rows_of(streams / "forgetting_curve.csv")
        if (row["kind"], row["buffer_size"], row["strategy"]) == wanted and row["rate"] in ("", "0.5")
    ]  # fmt: skip
    assert [int(row["held"]) for row in curve] == held
    row = rows_of(streams / "replay_ablation.csv")[place]
    assert float(row["update_norm"]) == pytest.approx(delta.norm(), rel=1e-3)
    report = ws.evaluate.knowledge(model, facts, delta, generate=False)
    assert float(row["neighbourhood"]) == pytest.approx(report.neighbourhood.value, abs=1e-6)


def test_an_editor_without_keys_has_none_in_the_grid(weightsmith, talker: Path, tmp_path: Path) -> None:
    flags = [word for word in flags_of(talker, tmp_path) if word not in ("--hparams", talker / "memit.yaml")]
    more = ["--edit-method", "head", "--max-edits", 4, "--rates", 1, "--buffers", 1, "--strategies", "priority"]
    outcome = weightsmith("ablate", *REPLAY, *flags, *more)
    assert outcome.status == 0, outcome.err
    rows = rows_of(tmp_path / "a" / "replay_ablation.csv")
    assert [(row["kind"], row["error"]) for row in rows] == [("none", ""), ("requests", "")]


def test_settings_that_replay_the_same() -> None:
    sizes = [10] * 10
    for same in (("random", 20, 2.0), ("recent", 20, 2.0), ("priority", 20, 5.0)):
        strategy, buffer, rate = same
        assert replayed_by(rate, buffer, strategy, sizes) == (20, "all")
    assert replayed_by(0.5, 500, "random", sizes) == replayed_by(0.5, 90, "random", sizes)
    assert replayed_by(0.5, 89, "random", sizes) != replayed_by(0.5, 90, "random", sizes)
    assert len({replayed_by(0.5, 20, strategy, sizes) for strategy in ("random", "priority", "recent")}) == 3
    assert replayed_by(2.0, 20, "random", [*sizes, 3]) == (20, 2.0, "random"), "the last batch replays but six"


# --- images ---------------------------------------------------------------------------------------------------------


def test_images(weightsmith, finished: Path, tmp_path: Path) -> None:
    given = ["--model", finished, "--data-path", "digits", "--runs-dir", tmp_path, "--n-views", 2, "--max-edits", 4]
    outcome = weightsmith("ablate", "lora", *given, "--ranks", 1, "--fit-steps", 2, "--run-name", "l")
    assert outcome.status == 0, outcome.err
    rows = rows_of(tmp_path / "l" / "lora_native_ablation.csv")
    assert [row["start"] for row in rows] == ["raw", "svd", "lora"]
    assert rows[0]["efficacy"] == rows[0]["same_answers"] == "1.0"
    assert float(rows[1]["largest_logit_difference"]) > 0
    assert rows[1].keys() >= {"repaired", "accuracy"}
    more = ["--batch-size", 2, "--rates", 1, "--buffers", 1, "--strategies", "random", "--run-name", "r"]
    outcome = weightsmith("ablate", "replay", *given, *more)
    assert outcome.status == 0, outcome.err
    rows = rows_of(tmp_path / "r" / "replay_ablation.csv")
    assert [row["kind"] for row in rows] == ["none", "keys", "requests"]
    assert not any(row["error"] for row in rows)
    assert [row["edits"] for row in rows_of(tmp_path / "r" / "forgetting_curve.csv")] == ["2"] * 9


@pytest.mark.parametrize("count", [5, 6])
def test_draws_of_all_requests_there_are_told_apart_by_nothing(
    weightsmith, talker: Path, tmp_path: Path, count: int
) -> None:
    flags = ["lora", "--ranks", 1, "--fit-steps", 0, "--max-edits", count, "--seeds", 0, 1]
    outcome = weightsmith("ablate", *flags, *flags_of(talker, tmp_path))
    assert outcome.status == 0, outcome.err
    assert ("the same requests in another order" in outcome.out) == (count == 6), "there are six facts"
    assert [row["seed"] for row in rows_of(tmp_path / "a" / "lora_native_ablation.csv")] == ["0", "0", "1", "1"]


# --- stopped, resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["lora", "replay"])
def test_what_was_stopped_measures_the_missing_trials_alone(
    weightsmith,
    talker: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
) -> None:
    flags, table = (LORA, "lora_native_ablation.csv") if which == "lora" else (REPLAY, "replay_ablation.csv")
    real, count = Trial.save, []

    def saving(trial: Trial, folder: Path) -> None:
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(trial)
        real(trial, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Trial, "save", saving)
        assert weightsmith("ablate", *flags, *flags_of(talker, tmp_path)).status == 130
    cells = tmp_path / "a" / "cells"
    done = {path: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert len(list(cells.glob("*.json"))) == 3
    # Nothing but the name is needed to go on.
    outcome = weightsmith("ablate", which, "--runs-dir", tmp_path, "--run-name", "a", "--resume")
    assert outcome.status == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert f"3 of {7 if which == 'lora' else 5} trials are measured already" in outcome.err
    finished = request.getfixturevalue("adapters" if which == "lora" else "streams")
    mine, theirs = (rows_of(run / table) for run in (tmp_path / "a", finished))
    for row in (*mine, *theirs):
        row.pop("seconds", None)
        row.pop("cpu_seconds", None)
    assert mine == theirs
    assert_refused(weightsmith("ablate", *flags, *flags_of(talker, tmp_path)), ["exists", "--resume", "--overwrite"])
    other = REPLAY if which == "lora" else LORA
    outcome = weightsmith("ablate", *other, *flags_of(talker, tmp_path, "--resume"))
    assert_refused(outcome, ["another ablation", "--overwrite"])


def test_a_damaged_trial_is_measured_again(tmp_path: Path) -> None:
    setting = {"kind": "requests", "rate": 0.5, "buffer_size": 20, "strategy": "", "seed": 0}
    measures = {"efficacy": Interval(0.5, float("nan"), 1.0, 8)}
    trial = Trial(
        setting, "key", measures, {"update_norm": 1.5, "n": 3, "x": float("nan")}, [[(2, 1)], [(2, 0), (2, 2)]]
    )
    trial.save(tmp_path)
    path = tmp_path / "requests-0.5-20-0.json"
    assert str(Trial.load(path, "key")) == str(trial)  # NaN is not NaN
    assert Trial.load(path, "another key") is None
    assert Trial.load(tmp_path / "absent.json", "key") is None
    for content in ("{", "[]", path.read_text().replace("1.5", '"x"'), path.read_text().replace("held", "h")):
        path.write_text(content)
        assert Trial.load(path, "key") is None
    assert titled(setting) == "requests, rate 0.5, buffer size 20, seed 0"
