"""Words that make no call: one sentence that names the flag, what was meant where that is near, and status 2."""

from __future__ import annotations

import json

import pytest

BAD = {
    "rum": ["no command rum", "'run'"],
    "locate patc": ["no patc", "'patch'"],
    "locate": ["one of trace, patch, attribution, astra"],
    "--foo": ["--foo names no command"],
    "run --epoch 3": ["no flag --epoch", "'--epochs'"],
    "run --edit_methods head": ["no flag --edit_methods", "'--edit-method'"],
    "run --jsn": ["no flag --jsn", "'--json'"],
    "merge --dry-rum": ["no flag --dry-rum", "'--dry-run'"],
    "run --zebra": ["no flag --zebra", "weightsmith run --help"],
    "run --epochs x": ["--epochs takes a whole number, not 'x'"],
    "run --edit-layers 1 x": ["--edit-layers takes whole numbers"],
    "run --stream-ratio much": ["--stream-ratio takes a number, not 'much'"],
    "run --run-name": ["--run-name has no value"],
    "run foo": ["takes no word 'foo'"],
    "locate patch --corruption blurr": ["--corruption blurr", "'blur'"],
    "merge --method tise": ["--method tise", "'ties'"],
    "edits show somewhere": ["needs one word more", "its number, or its request's name"],
    "--completion ksh": ["--completion ksh", "bash, zsh, tcsh, fish"],
    "--completion": ["--completion needs the name of a shell"],
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words(weightsmith, words: str) -> None:
    seen = weightsmith(*words.split())
    assert seen.status == 2
    lines = seen.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in BAD[words]:
        assert part in lines[0]
    assert seen.out == ""


def test_no_words(weightsmith) -> None:
    seen = weightsmith()
    assert seen.status == 2
    assert "give one of run, bench, baseline" in seen.err


def test_bad_words_as_json(weightsmith) -> None:
    seen = weightsmith("run", "--epoch", 3, "--json")
    assert seen.status == 2
    told = json.loads(seen.out)
    assert told["status"] == 2
    assert "'--epochs'" in told["error"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("run --data-path digist", ["'digits'"]),
        ("run --model digtis --data-path digits", ["'digits'"]),
        ("run --edit-method alphaedti", ["'alphaedit'"]),
        ("compare --methods memti", ["'memit'"]),
        ("ablate lora --edit-method memti", ["'memit'"]),
        ("artificial --preset palin", ["'plain'"]),
        ("artificial --operations substract", ["'subtract'"]),
        ("artificial --modes anchord", ["'anchored'"]),
        ("download pathmnits", ["'pathmnist'"]),
        ("edit --edit-method romee", ["'rome'"]),
    ],
)
def test_names_that_are_nearly_right(weightsmith, tmp_path, words: str, parts: list[str]) -> None:
    more = ["--to", tmp_path] if words.startswith("download") else ["--runs-dir", tmp_path / "runs"]
    seen = weightsmith(*words.split(), *more)
    assert seen.status == 1
    for part in ("did you mean", *parts):
        assert part in seen.err


def test_paths_and_entries_that_are_nearly_right(weightsmith, tmp_path) -> None:
    (tmp_path / "runs" / "scans").mkdir(parents=True)
    (tmp_path / "asked.yaml").write_text("epohcs: 3\n")
    runs = ["--runs-dir", tmp_path / "runs"]
    for words, meant in (
        (["merge", "--base", tmp_path / "runs" / "scns", "--models", "x", "--out", tmp_path / "out"], "scans"),
        (["edits", "list", tmp_path / "runs" / "scan"], "scans"),
        (["evaluate", "--auto-find", tmp_path / "run", *runs], "runs"),
        (["run", "--config", tmp_path / "aksed.yaml", *runs], "asked.yaml"),
        (["run", "--config", tmp_path / "asked.yaml", *runs], "epochs"),
        (["run", "--data-path", tmp_path / "rnus", *runs], "runs"),
    ):
        seen = weightsmith(*words)
        assert seen.status == 1
        assert "did you mean" in seen.err
        assert meant in seen.err


def test_runs_that_are_nearly_right(weightsmith, tmp_path) -> None:
    place = tmp_path / "runs" / "scans"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("seed: 1\n")
    for words in (["run", "--stage", "edit"], ["artificial", "--stage", "base"]):
        seen = weightsmith(*words, "--run-name", "scasn", "--runs-dir", tmp_path / "runs")
        assert seen.status == 1
        assert "did you mean 'scans'" in seen.err
