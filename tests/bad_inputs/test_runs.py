"""A run folder of an older version, of another command, or half a run: one sentence, nothing half-written or trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from weightsmith.cli.commands import find
from weightsmith.run.options.correct import BaselineOptions
from weightsmith.run.options.files import to_yaml

READS = {
    "run --run-name old --resume": "another version",
    "run --data-path digits --run-name half --stage edit": "another version",
    "evaluate --model-paths {half} --data-path digits": "holds no model",
    "locate patch --model {half}": "holds no model",
    "merge --base {half} --models {old} --out {out}": "holds no weights",
    "compress --checkpoint {half}": "holds no model",
    "compress --mode optimize --run-name half": "has no model",
    "artificial --stage sweep --run-name half": "another version",
    "edits list {half}": "no journal",
    "edits undo {old}": "another version",
    "compare --requests {half}": "comparison.json",
    "edit --model {half}": "holds no model",
    "ablate lora --model {half}": "holds no model",
    "run --checkpoint {half} --data-path digits": "holds no model",
}


@pytest.mark.parametrize("words", READS)
def test_half_runs_and_older_ones(weightsmith, tmp_path: Path, words: str) -> None:
    old, half = tmp_path / "old", tmp_path / "half"
    old.mkdir()
    (old / "config.yaml").write_text("seed: 42\ngone_option: 1\n")
    (half / "checkpoints").mkdir(parents=True)
    (half / "config.yaml").write_text("seed: 42\n")
    (half / "checkpoints" / "checkpoint.pt").write_bytes(b"cut off")
    given = words.format(old=old, half=half, out=tmp_path / "out").split()
    more = [] if given[0] in ("merge", "edits") else ["--runs-dir", str(tmp_path)]
    refused_at_once(weightsmith, [*given, *more], READS[words])
    assert not (tmp_path / "out").exists()


GOES_ON = {
    "run": "run --data-path digits",
    "run, a stage": "run --data-path digits --stage edit",
    "baseline": "baseline --data-path digits",
    "compress": "compress",
    "edit": "edit",
    "compare": "compare --data-path digits",
    "evaluate": "evaluate --model-paths {folder} --data-path digits",
    "artificial": "artificial",
    "artificial, a stage": "artificial --stage sweep",
    "facts": "facts",
    **{f"locate {way}": f"locate {way}" for way in ("trace", "patch", "attribution", "astra")},
    **{f"ablate {way}": f"ablate {way} --data-path digits" for way in ("lora", "replay")},
}
"""Commands that go on with a run, with what they need of flags: each would train for long if it began."""


def _other(config: Path, command: str) -> str:
    config.write_text(_asked("facts" if command != "facts" else "locate trace"))
    return "is of another "


def _unknown(config: Path, command: str) -> str:
    config.write_text(_asked(command) + "gone_option: 1\n")
    return "another version of weightsmith (its config.yaml names gone_option)"


def _missing(config: Path, command: str) -> str:
    config.write_text("".join(line for line in _asked(command).splitlines(True) if not line.startswith("device")))
    return "another version of weightsmith (its config.yaml lacks device)"


def _cut_off(config: Path, command: str) -> str:
    lines = _asked(command).splitlines(True)
    config.write_text("".join(lines[: len(lines) // 2]))
    return "another version of weightsmith (its config.yaml lacks "


def _blank(config: Path, command: str) -> str:
    config.touch()
    return "is damaged"


def _garbled(config: Path, command: str) -> str:
    config.write_bytes(b"\xff\xfe\x00")
    return "cannot be read"


def _strangers(config: Path, command: str) -> str:
    config.with_name("notes.txt").write_text("mine")
    return "names no run" if command.endswith("a stage") else "holds other files (notes.txt) and no run"


def _another_command(config: Path, command: str) -> str:
    config.write_text(_asked(command))
    stage = "facts" if command != "facts" else "trace"
    config.with_name("events.jsonl").write_text(json.dumps({"stage": stage, "event": "done"}) + "\n")
    return "another command than"


@pytest.mark.parametrize(
    "spoil", [_other, _unknown, _missing, _cut_off, _blank, _garbled, _strangers, _another_command]
)
@pytest.mark.parametrize("command", GOES_ON)
def test_what_cannot_be_gone_on_with(
    weightsmith, tmp_path: Path, command: str, spoil: Callable[[Path, str], str]
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    said = spoil(folder / "config.yaml", command)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    words = GOES_ON[command].format(folder=folder).split()
    refused_at_once(weightsmith, [*words, "--resume", "--run-name", "there", "--runs-dir", str(tmp_path)], said)
    after = {path: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "log.txt")}
    assert after == before


@pytest.mark.parametrize("command", ["run", "baseline", "evaluate", "locate trace", "ablate lora"])
def test_a_dry_run_refuses_the_same(weightsmith, tmp_path: Path, command: str) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    said = _missing(folder / "config.yaml", command)
    words = GOES_ON[command].format(folder=folder).split()
    flags = ["--resume", "--run-name", "there", "--runs-dir", str(tmp_path)]
    refused_at_once(weightsmith, [*words, "--dry-run", *flags], said)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("env.json", '{"a": ', "env.json is damaged: delete it"),
        ("checkpoints/checkpoint.pt", "cut off", "checkpoint.pt is damaged and cannot be read: delete it"),
    ],
)
def test_a_record_that_is_damaged_is_named(weightsmith, tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = tmp_path / "there"
    (folder / "checkpoints").mkdir(parents=True)
    asked = BaselineOptions(data_path="digits", model="digits", epochs=1)
    (folder / "config.yaml").write_text(to_yaml(asked))
    (folder / "events.jsonl").write_text('[]\n"baseline"\n{"stage": "base')  # lines of a kill say nothing
    (folder / name).write_text(text)
    refused_at_once(weightsmith, ["baseline", "--resume", "--run-name", "there", "--runs-dir", str(tmp_path)], said)


def test_a_run_that_was_killed_goes_on(weightsmith, tmp_path: Path, tiny) -> None:
    """Between any two things that it writes: an empty folder, a log without options, a training that was stopped."""
    flags = [*tiny(tmp_path), "--epochs", "1", "--stage", "data"]
    for name, left in (("a", ()), ("b", ("log.txt", ".lock")), ("c", ("events.jsonl",))):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        for one in left:
            (place / one).touch()
        assert weightsmith("run", *flags, "--resume", "--run-name", name).status == 0
        assert (place / "data_split.json").is_file()


def refused_at_once(weightsmith, words: list[str], said: str) -> None:
    """One sentence, with a remedy, and no traceback."""
    seen = weightsmith(*words)
    errors = [line for line in seen.err.splitlines() if line.startswith("error:")]
    assert (seen.status, len(errors)) == (1, 1), seen.err
    assert said in errors[0]
    assert ": " in errors[0].removeprefix("error: ")
    assert "{" not in errors[0]
    assert "Traceback" not in seen.err
    assert "val accuracy" not in seen.err  # nothing was trained


def _asked(command: str) -> str:
    """The options of a run that was asked nothing beside its command."""
    kind = find(command.partition(",")[0]).kind()
    assert fields(kind)
    return to_yaml(kind())
