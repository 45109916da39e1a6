"""What the flags of a sweep mean on this machine, and what is wrong with them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec

from weightsmith.errors import WeightsmithError
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.spread import SpreadOptions

_log = logging.getLogger(__name__)

ADDRESSES = {"ray": "RAY_ADDRESS", "dask": "DASK_SCHEDULER_ADDRESS"}
"""Backend → the environment variable that names its cluster."""
CELL_THREADS = "cell_threads"
"""What `env.json` calls the threads of a cell."""
_PACKAGES = {"ray": "ray", "dask": "distributed"}


@dataclass(frozen=True)
class Settings:
    """Who measures the cells.

    Attributes:
        backend: "processes", "ray" or "dask".
        jobs: at a time; None is as many as the cluster has room for. threads: of torch in each cell.
        address: of the cluster, and named: how the user gave it; "" where one is started here.
    """

    backend: str
    jobs: int | None
    threads: int
    address: str = ""
    named: str = ""

    @property
    def here(self) -> bool:
        """Whether the cells are measured in this process."""
        return self.backend == "processes" and self.jobs == 1


def check_spread(options: SpreadOptions) -> None:
    """Raise `WeightsmithError` for flags that cannot be meant, or whose package is not there."""
    for name in ("jobs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise WeightsmithError(f"--{name} must be at least 1, not {value}: give 1 or more")
    goes_on = (
        isinstance(options, FolderOptions) and options.resume
    )  # then the address may be what the run was begun with
    if options.backend == "processes" and options.address is not None and not goes_on:
        raise WeightsmithError(
            f"--address {options.address} is of a cluster: give --backend ray or --backend dask as well, or leave it out"
        )
    package = _PACKAGES.get(options.backend)
    if package is not None and find_spec(package) is None:
        raise WeightsmithError(
            f'--backend {options.backend} needs the package {package}: pip install "weightsmith[cluster]", or leave it out'
        )


def settings_of(options: SpreadOptions, folder: RunFolder) -> Settings:
    """The settings of a run; threads are those of the cells that are there, so that a run has one number of them."""
    jobs = options.jobs or (1 if options.backend == "processes" else None)
    variable = ADDRESSES.get(options.backend, "")
    address = options.address or os.environ.get(variable, "")
    named = f"--address {address}" if options.address else f"{variable}={address}" if address else ""
    settings = Settings(options.backend, jobs, _threads(options, folder, jobs), address, named)
    cores = usable_cores()
    if settings.backend == "processes" and jobs is not None and jobs * settings.threads > cores and not settings.here:
        _log.warning(
            "--jobs %d of %d threads each are more than the %d processors of this machine: fewer are faster",
            jobs, settings.threads, cores,
        )  # fmt: skip
    return settings


def usable_cores() -> int:
    """Processors that this process may use."""
    import joblib

    return int(joblib.cpu_count())


def _threads(options: SpreadOptions, folder: RunFolder, jobs: int | None) -> int:
    import torch

    assert isinstance(options, FolderOptions)
    before = folder.env().get(CELL_THREADS)
    before = before if isinstance(before, int) and before > 0 else None
    if options.threads is not None:
        if before not in (None, options.threads):
            _log.warning(
                "cells of %s were measured with %d threads: with %d the last digits may be others",
                folder.path, before, options.threads,
            )  # fmt: skip
        return options.threads
    if before is not None:
        return before
    return int(torch.get_num_threads()) if options.backend == "processes" and jobs == 1 else 1
