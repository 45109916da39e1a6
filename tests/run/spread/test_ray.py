"""Cells on a Ray cluster of two nodes with a processor each."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.spread.checks import (
    MANY,
    check_a_worker_that_cannot_begin,
    check_that_a_cell_fails_whose_workers_are_killed,
    check_that_a_comparison_is_the_same,
    check_that_an_ablation_is_the_same,
    check_that_every_cell_comes_back,
    check_what_ends_every_sweep,
    found,
    settings_at,
    smaller,
)
from weightsmith.errors import WeightsmithError
from weightsmith.run.spread import Settings, clusters

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "weightsmith[cluster]"')

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Workers import the tests' cells, and nobody is told of any of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patched.delenv("RAY_ADDRESS", raising=False)
        yield


def test_a_cluster_is_started_where_none_is_named(tmp_path: Path) -> None:
    assert found(tmp_path, Settings("ray", 1, 1), *MANY) == [number**2 for number in range(7)]
    assert len(list(tmp_path.glob("made-*"))) == 1


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_workers_of_another_version(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.weightsmith, "__version__", "9.9.9")
    with pytest.raises(WeightsmithError, match=r"and this is 9\.9\.9: install the same version there"):
        found(tmp_path, settings_at("ray", address), *MANY)


def test_more_threads_than_any_machine_has(address: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match="no machine of the cluster has 64 processors"):
        found(tmp_path, Settings("ray", None, 64, address, f"--address {address}"), *MANY)


def test_every_cell_comes_back_and_what_fails_is_told(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_that_every_cell_comes_back(settings_at("ray", address), tmp_path, caplog)


# --- in one connection, in which workers have imported everything once ----------------------------------------------


@pytest.fixture(scope="module")
def joined(address: str) -> Iterator[Settings]:
    """Settings of the cluster, to which this process is connected as a program that uses Ray itself would be."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield settings_at("ray", address)
    finally:
        ray.shutdown()


@pytest.fixture
def flags(joined: Settings) -> list[str]:
    return ["--backend", "ray", "--address", joined.address]


def test_a_comparison_is_the_same_to_the_last_bit(
    weightsmith, finished: Path, alone: Path, flags: list[str], tmp_path: Path
) -> None:
    check_that_a_comparison_is_the_same(weightsmith, finished, alone, tmp_path, *flags)


def test_an_ablation_of_adapters_is_the_same_to_the_last_bit(
    weightsmith, finished: Path, alone: Path, flags: list[str], tmp_path: Path
) -> None:
    check_that_an_ablation_is_the_same(weightsmith, finished, alone, tmp_path, "lora", *flags)


def test_models_made_smaller_are_the_same_to_the_last_bit(
    weightsmith, baseline: Path, flags: list[str], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(baseline, tmp_path / "two"))
    for run, how in ((baseline, ["--threads", 1]), (other, flags)):
        outcome = weightsmith(*smaller(run, *how))
        assert outcome.status == 0, outcome.err
    made = sorted(path.relative_to(baseline) for path in baseline.rglob("*.safetensors"))
    assert len(made) == 4
    for path in made:
        assert (other / path).read_bytes() == (baseline / path).read_bytes()
    assert (other / "events.jsonl").read_text().count('"optimized"') == 3


# Workers are killed in what follows, so that each test begins with new ones.


def test_what_ends_every_sweep(joined: Settings, tmp_path: Path) -> None:
    check_what_ends_every_sweep(joined, tmp_path)


def test_a_worker_that_cannot_begin(joined: Settings, tmp_path: Path) -> None:
    check_a_worker_that_cannot_begin(joined, tmp_path)


def test_a_worker_that_is_killed(joined: Settings, tmp_path: Path) -> None:
    check_that_a_cell_fails_whose_workers_are_killed(joined, tmp_path)
