"""Two clusters of two workers on this machine, started once a test process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster of two nodes with a processor each."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "weightsmith[cluster]"')
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture(scope="session")
def dask_address() -> Iterator[str]:
    """A Dask cluster of two processes with a thread each; a cell that kills two workers has failed."""
    pytest.importorskip("distributed", reason='Dask is not installed: pip install "weightsmith[cluster]"')
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
def on_ray(ray_address: str) -> list[str]:
    """Flags of the Ray cluster, whose workers have imported everything once."""
    return ["--backend", "ray", "--address", ray_address]


@pytest.fixture
def on_dask(dask_address: str) -> list[str]:
    """Flags of the Dask cluster."""
    return ["--backend", "dask", "--address", dask_address]


@pytest.fixture(params=["processes", "ray", "dask"])
def flags(request: pytest.FixtureRequest) -> list[str]:
    """Flags of each backend in turn, with two workers."""
    backend: str = request.param
    if backend == "processes":
        return ["--jobs", "2"]
    return ["--backend", backend, "--address", request.getfixturevalue(f"{backend}_address")]
