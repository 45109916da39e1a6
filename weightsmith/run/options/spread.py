"""The options of commands whose cells can be measured by several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SpreadOptions:
    """Who measures the cells of a sweep."""

    jobs: int | None = None
    """Cells at a time, each in a process of its own [1, in this process; of a cluster as many as it has room for]."""
    backend: Literal["processes", "ray", "dask"] = "processes"
    """Processes of this machine, or a Ray or Dask cluster."""
    address: str | None = None
    """Of the cluster, HOST:PORT [RAY_ADDRESS or DASK_SCHEDULER_ADDRESS; else one is started on this machine for the while]."""
    threads: int | None = None
    """Of torch in each cell; numbers are the same to the last digit only where this is [a run that is gone on with keeps
    its own; else 1, and in this process as many as torch takes]."""
