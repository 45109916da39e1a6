"""Two processes of one job come to what one comes to: exactly where passes are shared, to rounding where sums are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith as ws
from tests import team_work
from weightsmith import ranks
from weightsmith.data.images import ArrayStore
from weightsmith.data.texts import TextSet
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.report import plots

ROOT = Path(__file__).resolve().parents[1]

SUMMED = ("moment.", "none.", "natural.", "student.", "talker.")
"""What is added up in another order; everything else must be the same to the bit."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What one process comes to, and what it says of what it cannot do."""
    folder = tmp_path_factory.mktemp("alone")
    found = {name: value.contiguous() for name, value in team_work.worked(folder).items()}
    save_file(found, folder / "found.safetensors")  # what is compared went through a file on both sides
    return load_file(folder / "found.safetensors"), team_work.failing(folder)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes under torchrun left what they came to."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    folder = tmp_path_factory.mktemp("team")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(
        [*command, str(ROOT / "tests" / "team_work.py"), str(folder)], {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    return folder


def run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_come_to_what_one_comes_to(
    team: Path, alone: tuple[dict[str, torch.Tensor], dict[str, str]]
) -> None:
    assert (team / "processes.txt").read_text() == "2"
    mine, theirs = alone[0], load_file(team / "found.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.shape == theirs[name].shape, name
        if name.startswith(SUMMED):
            assert torch.allclose(value.double(), theirs[name].double(), rtol=1e-6, atol=5e-6), name
        else:
            assert torch.equal(value, theirs[name]), name
    for name in mine:
        if name.startswith("moment."):
            apart = (mine[name] - theirs[name]).norm() / mine[name].norm()
            assert apart < 1e-6, (name, apart)


def test_each_reads_only_its_part(team: Path) -> None:
    read = [[int(line) for line in file.read_text().splitlines()] for file in sorted(team.glob("read-*.txt"))]
    assert len(read) == 2, "a process read nothing, or another one read too"
    assert sorted(read[0] + read[1]) == list(range(1000))
    assert min(map(len, read)) > 400


def test_what_one_of_them_meets_is_told_once_and_all_go_on(
    team: Path, alone: tuple[dict[str, torch.Tensor], dict[str, str]]
) -> None:
    said = json.loads((team / "said.json").read_text())
    assert said == alone[1]
    assert said["train"] == "image 900 cannot be read: remove or replace it"
    assert "give a smaller --lr" in said["diverged"]
    assert {said[name] for name in ("hooked", "trained with a hook", "changed", "and back")} == {"True"}


def test_a_command_writes_the_same_tables(team: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_work.SWEEP, "_CPU_LANE_BYTES", 1)  # as in the job
    monkeypatch.setattr(plots, "_png", team_work.blank)
    team_work.commanded(tmp_path)
    mine, theirs = tmp_path / "patched", team / "patched"
    tables = sorted(file.relative_to(mine) for file in mine.rglob("*.csv"))
    assert len(tables) >= 4
    for file in tables:
        assert (mine / file).read_bytes() == (theirs / file).read_bytes(), file.name
    assert [json.loads((run / "env.json").read_text())["processes"] for run in (mine, theirs)] == [1, 2]
    assert json.loads((mine / "summary.json").read_text()) == json.loads((theirs / "summary.json").read_text())


def test_it_is_reached_from_the_package() -> None:
    assert ws.ranks is ranks


def test_without_torchrun_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not ranks.started()
    assert not ranks.helping()
    with ranks.led():
        assert ranks.world() == 1
        assert ranks.everywhere(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
        assert list(ranks.dealt(abs, [-1, -2, 3], lambda value: (value,))) == [(-1, 1), (-2, 2), (3, 3)]


@pytest.mark.parametrize("size", ["two", "0", "1", ""])
def test_a_world_that_is_no_number_of_processes_is_none(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    assert not ranks.started()


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (1, 2), (7, 3), (12, 4), (5, 8)])
def test_what_is_divided_is_all_there_once_and_even(count: int, parts: int) -> None:
    runs = ranks.divided(count, parts)
    assert [place for run in runs for place in run] == list(range(count))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_accelerate_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(WeightsmithError, match=r"weightsmith\[parallel\]"), ranks.led():
        pass


def test_images_that_are_sent_are_the_same_and_no_more(tmp_path: Path) -> None:
    images = team_work.noise_images(50).subset([7, 3, 40])
    sent = images.alone()
    assert torch.equal(sent.pixels(), images.pixels())
    assert sent.labels.tolist() == images.labels.tolist()
    assert len(sent.store) == 3
    assert isinstance(sent.store, ArrayStore)
    in_file = team_work.mapped(tmp_path).subset([5, 200, 0])
    there = in_file.alone()
    assert torch.equal(there.pixels(), in_file.pixels())
    assert not isinstance(there.store, ArrayStore), "a file is not sent"
    assert torch.equal(there.subset([2, 0]).alone().pixels(), in_file.pixels([2, 0]))
    with pytest.raises(HeldOutError):
        images.seal().alone()


@pytest.mark.parametrize("windows", [[0, 1, 4], [4, 1], [2], [3, 4]])
def test_text_that_is_sent_is_the_same(windows: list[int]) -> None:
    text = TextSet(np.arange(23, dtype=np.int32), np.arange(5), 5, "ids").subset(windows)
    sent = text.alone()
    for mine, theirs in zip(text.batches(2), sent.batches(2), strict=True):
        assert torch.equal(mine, theirs)
    assert sent.n_tokens == text.n_tokens
