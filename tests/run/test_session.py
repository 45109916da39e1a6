"""The life of a run folder that commands share: whatever fills it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from weightsmith.errors import WeightsmithError
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.session import Kin, at_least, distinct, flag, session


@dataclass(frozen=True, kw_only=True)
class Knobs(FolderOptions):
    """Options of a command that writes a number."""

    number: int = 1
    letters: tuple[str, ...] = ()
    loud: bool = False
    speed: int = 1


KIN = Kin(
    commands=("write", "rewrite"),
    called="write",
    another="another way to write",
    results=("*.txt",),
    inside=("pieces",),
    worth=("pieces/*",),
    free=("speed",),
)


def write(
    runs: Path, name: str | None = "r", command: str = "write", failure: BaseException | None = None, **more
) -> Path:
    options = Knobs(runs_dir=str(runs), run_name=name, **more)
    with session(options, command, KIN, "stem") as folder:
        folder.results.mkdir(parents=True, exist_ok=True)
        (folder.results / "number.txt").write_text(str(options.number))
        if options.letters:
            (folder.path / "pieces").mkdir(exist_ok=True)
            (folder.path / "pieces" / "one").touch()
        if failure is not None:
            raise failure
    return folder.path


def told(run: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(line["stage"], line["event"]) for line in lines]


def test_a_run_is_written_down(tmp_path: Path) -> None:
    run = write(tmp_path, number=7)
    assert run == tmp_path / "r"
    assert yaml.safe_load((run / "config.yaml").read_text())["number"] == 7
    assert told(run) == [("write", "start"), ("write", "done")]
    assert (run / "log.txt").exists()


def test_a_run_without_a_name_gets_one(tmp_path: Path) -> None:
    assert [write(tmp_path, name=None).name for _ in range(2)] == ["stem", "stem-2"]


def test_an_existing_run_is_refused_unasked(tmp_path: Path) -> None:
    run = write(tmp_path)
    with pytest.raises(WeightsmithError, match=r"--resume .*--overwrite .*--run-name"):
        write(tmp_path, number=2)
    assert (run / "number.txt").read_text() == "1"
    assert told(run)[-1] == ("write", "done")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"number": 2}, "--number 1"),
        ({"letters": ("a", "b")}, "no --letters"),
        ({"loud": True}, "--no-loud"),
        ({"seed": 1, "number": 3}, "--seed 42, --number 1"),
    ],
)
def test_other_options_are_named(tmp_path: Path, more: dict[str, object], said: str) -> None:
    write(tmp_path)
    with pytest.raises(WeightsmithError, match="was measured with other options") as refused:
        write(tmp_path, resume=True, **more)
    assert f"({said})" in str(refused.value)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["number"] == 1


def test_where_and_how_may_differ(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, resume=True, device="cpu", speed=9)


def test_kin_may_replace_each_other_and_nobody_else(tmp_path: Path) -> None:
    run = write(tmp_path)
    write(tmp_path, command="rewrite", resume=True)
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "edit", "event": "done"}) + "\n")
    for more in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(WeightsmithError, match="another command than write"):
            write(tmp_path, **more)


def test_options_of_another_kind_are_refused(tmp_path: Path) -> None:
    run = write(tmp_path)
    (run / "config.yaml").write_text("colour: blue\n")
    with pytest.raises(WeightsmithError, match=r"is of another way to write, .*names colour and lacks seed"):
        write(tmp_path, resume=True)


def test_overwriting_replaces_results_and_leaves_what_is_the_users(tmp_path: Path) -> None:
    run = write(tmp_path, letters=("a",))
    (run / "mine.md").write_text("a note")
    (run / "old.txt").write_text("of an earlier version")
    write(tmp_path, overwrite=True, number=3)
    assert {path.name for path in run.iterdir()} - {".lock", "log.txt"} == {
        "config.yaml", "events.jsonl", "mine.md", "number.txt",
    }  # fmt: skip


@pytest.mark.parametrize("failure", [WeightsmithError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_overwriting_that_fails_keeps_what_was(tmp_path: Path, failure: BaseException) -> None:
    run = write(tmp_path)
    with pytest.raises(type(failure)):
        write(tmp_path, overwrite=True, number=3, letters=("a",), failure=failure)
    assert (run / "number.txt").read_text() == "1"
    assert yaml.safe_load((run / "config.yaml").read_text())["number"] == 1
    assert not (run / "pieces").exists()
    assert told(run)[-1] == ("write", "interrupted" if isinstance(failure, KeyboardInterrupt) else "failed")


def test_what_was_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError):
        write(tmp_path, failure=WeightsmithError("no such thing"))
    assert not (tmp_path / "r").exists()


def test_what_is_worth_it_stays(tmp_path: Path) -> None:
    """A piece that took its time is gone on with, under the options that it was made with."""
    with pytest.raises(WeightsmithError):
        write(tmp_path, letters=("a",), failure=WeightsmithError("too late"))
    assert (tmp_path / "r" / "pieces" / "one").exists()
    with pytest.raises(WeightsmithError, match="--letters a"):
        write(tmp_path, resume=True, letters=("b",))
    write(tmp_path, resume=True, letters=("a",))


def test_tables_may_lie_elsewhere(tmp_path: Path) -> None:
    places = {"results_dir": str(tmp_path / "tables"), "log_dir": str(tmp_path / "logs")}
    write(tmp_path, letters=("a",), **places)
    (tmp_path / "r" / "mine.txt").write_text("a note")
    assert (tmp_path / "tables" / "r" / "number.txt").exists()
    assert (tmp_path / "logs" / "r" / "log.txt").exists()
    write(tmp_path, overwrite=True, number=2, **places)
    assert (tmp_path / "tables" / "r" / "number.txt").read_text() == "2"
    assert not (tmp_path / "r" / "pieces").exists()
    assert (tmp_path / "r" / "mine.txt").exists()


def test_checks(tmp_path: Path) -> None:
    assert flag("edit_layers") == "--edit-layers"
    with pytest.raises(WeightsmithError, match="--number must be at least 2, not 1"):
        at_least(Knobs(), {"number": 2, "absent": 5})
    with pytest.raises(WeightsmithError, match="--letters needs one or more different values, such as `a b`"):
        distinct("letters", ("a", "a"), "a b")
    for seed in (-1, 2**32 - 1):
        with pytest.raises(WeightsmithError, match="--seed"):
            write(tmp_path, seed=seed)
    with pytest.raises(WeightsmithError, match=r"--resume .*--run-name .*none in"):
        write(tmp_path, name=None, resume=True)
    assert not list(tmp_path.iterdir())
