"""The commands: `weightsmith edits` on what the bench did and the other way round, and runs that cannot be corrected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.run.conftest import assert_refused
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.files import read_csv
from weightsmith.models import load
from weightsmith.run.bench import command
from weightsmith.run.bench.command import only_one
from weightsmith.run.bench.server import listening
from weightsmith.run.bench.session import Session
from weightsmith.run.recorded import recorded_split

Bench = Callable[..., Session]


def test_edits_of_the_bench_are_ordinary_ones(
    weightsmith, bench: Bench, first_errors: Callable[[Session, int], list[int]], run_copy: Path
) -> None:
    session = bench()
    indices = first_errors(session, 3)
    for index in indices:
        session.keep(session.preview({index: int(session.labels[index])}))
    names = [session.picture(index).name for index in indices]

    listed = weightsmith("edits", "list", run_copy)
    assert "3 edits in force" in listed.out
    assert all(name in listed.out for name in names)
    assert f"image, was {session.picture(indices[0]).first}" in listed.out
    told = json.loads(weightsmith("edits", "show", run_copy, 2).out)
    assert told["request"]["name"] == names[1]
    assert told["request"]["target"] == int(session.labels[indices[1]])
    assert told["batch_info"]["trust"]["score"] > 0

    removed = weightsmith("edits", "remove", run_copy, names[1])  # while the bench is open
    assert removed.status == 0, removed.err
    assert f"Edit 2, {names[1]}, is removed" in removed.out
    assert session.stale()
    assert session.sync()
    assert [line.number for line in session.history()] == [3, 1]
    assert not session.picture(indices[1]).right
    assert [row["sample"] for row in read_csv(run_copy / "bench" / "patcher_edit_log.csv")] == [names[0], names[2]]
    worn = session.model.module.state_dict()
    saved = load(run_copy / "bench" / "edited").module.state_dict()
    assert all(torch.equal(worn[name], saved[name]) for name in worn)
    assert session.summary().saved

    next((run_copy / "bench" / "edited").glob("*.safetensors")).write_bytes(b"damaged")
    assert weightsmith("edits", "replay", run_copy).status == 0
    assert weights_hash(load(run_copy / "bench" / "edited")) == weights_hash(session.model)
    undone = weightsmith("edits", "undo", run_copy, "--all")
    assert undone.status == 0, undone.err
    assert not (run_copy / "bench").exists()
    assert session.sync()
    assert weights_hash(session.model) == weights_hash(load(run_copy / "model"))


def test_a_number_is_never_given_again(bench: Bench, first_errors: Callable[[Session, int], list[int]]) -> None:
    session = bench()
    one, two = first_errors(session, 2)
    session.keep(session.preview({one: int(session.labels[one])}))
    session.undo(1)
    session = bench()  # as after a restart
    assert session.keep(session.preview({two: int(session.labels[two])})).edits[0].number == 2


def test_what_it_learned_from_is_recorded_beside_it(
    bench: Bench, first_errors: Callable[[Session, int], list[int]], run_copy: Path
) -> None:
    """So that `weightsmith evaluate` measures on images that nothing has seen."""
    session = bench()
    (index,) = first_errors(session, 1)
    session.keep(session.preview({index: int(session.labels[index])}))
    session.save()
    source = session.held.job.source
    mine = recorded_split(str(run_copy / "bench" / "edited"), source)
    assert mine is not None
    theirs = session.held.job.split.held_out
    (held,) = mine.held()
    assert mine.part(held, source).digest() == theirs.digest()
    assert "edits" in (run_copy / "bench" / "edited" / "README.md").read_text().lower()


def test_while_another_process_works_on_the_run_nothing_is_kept(
    bench: Bench, first_errors: Callable[[Session, int], list[int]]
) -> None:
    session = bench()
    (index,) = first_errors(session, 1)
    seen = session.preview({index: int(session.labels[index])})
    with session.held.job.folder.in_use(), pytest.raises(WeightsmithError, match="wait until it is done and try again"):
        session.keep(seen)
    session.keep(seen)


def _without(*names: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _config(**changes: object) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        entries = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**entries, **changes}))

    return spoil


def _of_locate(run: Path) -> None:
    (run / "config.yaml").write_text("sites: [resid.out]\n")


def _damaged(run: Path) -> None:
    (run / "model" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("config.yaml"), ["is no run folder: give a folder that `weightsmith run` made"]),
        (_of_locate, ["is a run of another command"]),
        (_config(keys_from=1), ["made by another version of weightsmith", "'keys_from'", "--checkpoint"]),
        (
            _without("model"),
            ["has no trained classifier yet: finish `weightsmith run --stage train", "--run-name base"],
        ),
        (_without("data_split.json"), ["has no record of how its data were split", "--stage data"]),
        (_config(data_path="gone/scans.npz"), ["the data of", "cannot be opened", "gone/scans.npz"]),
        (_config(seed=7), ["the train part is not the one that the data stage recorded"]),
        (_damaged, ["the model in", "cannot be loaded"]),
    ],
)
def test_runs_that_cannot_be_corrected(
    spoil: Callable[[Path], None], words: list[str], weightsmith, run_copy: Path
) -> None:
    spoil(run_copy)
    assert_refused(weightsmith("bench", run_copy, "--port", 0, "--device", "cpu"), words)
    assert not (run_copy / "edits").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--edit-method", "pather"], ["--edit-method pather is no editor: did you mean 'patcher'?"]),
        (["--edit-method", "head", "--reach", "alike"], ["--reach is the patcher's, and the editor is head"]),
        (["--trust-threshold", 2], ["--trust-threshold must be from 0 to 1"]),
        (["--max-images", 0], ["--max-images must be at least 2"]),
        (["--edit-from", "nowhere.npz"], ["nowhere.npz"]),
        (["--device", "abacus"], ["--device abacus cannot be used here"]),
    ],
)
def test_bad_options(flags: list[object], words: list[str], weightsmith, run_copy: Path) -> None:
    assert_refused(weightsmith("bench", run_copy, "--port", 0, *flags), words)


def test_a_port_in_use(weightsmith, run_copy: Path) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert_refused(
            weightsmith("bench", run_copy, "--port", port), [f"port {port} is in use", "give another --port"]
        )


def test_one_bench_a_run(weightsmith, run_copy: Path) -> None:
    with only_one(run_copy) as told:
        told("http://127.0.0.1:7999/")
        words = ["has a bench open already at http://127.0.0.1:7999/: use that page, or close it first"]
        assert_refused(weightsmith("bench", run_copy, "--port", 0), words)
    with only_one(run_copy):
        assert not (run_copy / ".bench.address").exists()


def test_without_gradio(weightsmith, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "gradio" else True)
    assert_refused(weightsmith("bench", run_copy), ["needs gradio", "pip install 'weightsmith[app]'"])


def test_another_editor_than_the_journal_has(
    weightsmith, bench: Bench, first_errors: Callable[[Session, int], list[int]], run_copy: Path
) -> None:
    session = bench()
    (index,) = first_errors(session, 1)
    session.keep(session.preview({index: int(session.labels[index])}))
    for flags, words in (
        (("--edit-method", "head"), "were made with --edit-method patcher: leave out --edit-method head"),
        (("--reach", "alike"), "were made with --reach image: leave out --reach alike"),
        (("--edit-from", "train"), "come from val: leave out --edit-from train"),
    ):
        assert_refused(weightsmith("bench", run_copy, "--port", 0, *flags), [words])


def test_edits_of_a_run_without_a_journal(weightsmith, run_copy: Path) -> None:
    assert_refused(weightsmith("edits", "undo", run_copy), ["holds no journal of edits"])


def test_gradio_is_imported_by_the_page_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys, weightsmith.cli, weightsmith.run.bench.command, weightsmith.run.bench.markup;"
        "sys.exit('gradio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
