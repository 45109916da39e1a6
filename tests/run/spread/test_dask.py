"""Cells on a Dask cluster of two processes with a thread each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.run.spread.checks import (
    MANY,
    cells,
    check_a_worker_that_cannot_begin,
    check_that_a_cell_fails_whose_workers_are_killed,
    check_that_a_comparison_is_the_same,
    check_that_an_ablation_is_the_same,
    check_that_every_cell_comes_back,
    check_what_ends_every_sweep,
    found,
    settings_at,
)
from weightsmith.errors import WeightsmithError
from weightsmith.files import read_csv
from weightsmith.run.spread import Settings, clusters

pytest.importorskip("distributed", reason='Dask is not installed: pip install "weightsmith[cluster]"')


@pytest.fixture(scope="module", autouse=True)
def _imported() -> Iterator[None]:
    """Workers are forks of one process that has imported what cells need, which takes each of them seconds otherwise."""
    import multiprocessing

    import dask
    from distributed.utils import get_mp_context

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
            get_mp_context()  # it names what is imported before anyone else can
            needed = ["distributed", "weightsmith.run.compare.command", "transformers.models.vit.modeling_vit"]
            multiprocessing.get_context("forkserver").set_forkserver_preload(needed)
            yield


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the cluster, in which a cell that kills two workers has failed."""
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        )
        try:
            yield cluster.scheduler_address
        finally:
            cluster.close()


@pytest.fixture
def spread(address: str) -> Settings:
    return settings_at("dask", address)


@pytest.fixture
def flags(address: str) -> list[str]:
    return ["--backend", "dask", "--address", address]


def test_a_cluster_is_started_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    assert found(tmp_path, Settings("dask", 1, 1), *MANY) == [number**2 for number in range(7)]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_workers_of_another_version(spread: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.weightsmith, "__version__", "9.9.9")
    with pytest.raises(WeightsmithError, match=r"and this is 9\.9\.9: install the same version there"):
        found(tmp_path, spread, *MANY)


def test_every_cell_comes_back_and_what_fails_is_told(
    spread: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_that_every_cell_comes_back(spread, tmp_path, caplog)


def test_what_ends_every_sweep(spread: Settings, tmp_path: Path) -> None:
    check_what_ends_every_sweep(spread, tmp_path)


def test_a_worker_that_cannot_begin(spread: Settings, tmp_path: Path) -> None:
    check_a_worker_that_cannot_begin(spread, tmp_path)


def test_a_comparison_is_the_same_to_the_last_bit(
    weightsmith, finished: Path, alone: Path, flags: list[str], tmp_path: Path
) -> None:
    check_that_a_comparison_is_the_same(weightsmith, finished, alone, tmp_path, *flags)


def test_an_ablation_of_replay_is_the_same_to_the_last_bit(
    weightsmith, finished: Path, alone: Path, flags: list[str], tmp_path: Path
) -> None:
    check_that_an_ablation_is_the_same(weightsmith, finished, alone, tmp_path, "replay", *flags)


def test_coefficients_are_the_same_to_the_last_bit(
    weightsmith, finished: Path, flags: list[str], tmp_path: Path
) -> None:
    given = ["--pretrained", finished / "model", "--finetuned", finished / "edited", "--data-path", "digits"]
    given += ["--modes", "anchored", "--operations", "subtract", "add", "--coefficients", 0, 0.5, 1, "--device", "cpu"]
    for name, how in (("one", ["--threads", 1]), ("two", flags)):
        outcome = weightsmith("artificial", *given, "--runs-dir", tmp_path, "--run-name", name, *how)
        assert outcome.status == 0, outcome.err
    assert (tmp_path / "one" / "sweep.csv").read_bytes() == (tmp_path / "two" / "sweep.csv").read_bytes()
    assert cells(tmp_path / "one") == cells(tmp_path / "two")
    assert len(cells(tmp_path / "two")) == 6


def test_cells_of_a_language_model_are_the_same_and_a_failed_one_is_told_with_what_measures_it_again(
    weightsmith, talker: Path, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({"method": "rome", "layers": [0, 1]}))
    given = ["compare", "--model", talker / "model", "--data-path", talker / "facts.json", "--device", "cpu"]
    given += ["--preserve", talker / "text.txt", "--batch-sizes", 2, "--seeds", 0, 1, "--runs-dir", tmp_path]
    both = ["--methods", "rome", "finetune", "--hparams", tmp_path / "wide.yaml", talker / "finetune.yaml"]
    outcome = weightsmith(*given, *both, "--run-name", "c", *flags)
    assert outcome.status == 3, outcome.err
    assert "rome, 2 edits, seed 0 failed: ROME edits one layer" in outcome.out
    again = f"weightsmith compare --runs-dir {tmp_path} --run-name c --resume"
    assert f"2 of 4 cells failed: `{again}` measures them again" in outcome.out
    rows = read_csv(tmp_path / "c" / "baseline_comparison.csv")
    assert [bool(row["error"]) for row in rows] == [True, True, False, False]
    outcome = weightsmith(*again.split()[1:], "--backend", "processes")
    assert outcome.status == 3, outcome.err
    assert "2 of 4 cells are measured already" in outcome.err
    one = ["--methods", "finetune", "--hparams", talker / "finetune.yaml", "--threads", 1]
    assert weightsmith(*given, *one, "--run-name", "alone").status == 0
    alone, spread = cells(tmp_path / "alone"), cells(tmp_path / "c")
    assert len(alone) == 2
    assert {name: measured(spread[name]) for name in alone} == {name: measured(cell) for name, cell in alone.items()}


def measured(cell: dict[str, Any]) -> dict[str, Any]:
    """What a cell came to, without the key of its comparison."""
    return {name: value for name, value in cell.items() if name != "key"}


def test_a_worker_that_is_killed(spread: Settings, tmp_path: Path) -> None:
    check_that_a_cell_fails_whose_workers_are_killed(spread, tmp_path)
