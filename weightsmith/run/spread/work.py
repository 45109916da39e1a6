"""What happens where a cell is measured: what all cells share is made once, and whatever goes wrong becomes a value."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.files import cause_of, disk_is_full
from weightsmith.progress import without_bars

Measure = Callable[[Any], Any]
"""From a cell to what it came to. Raises where it cannot be measured."""


@dataclass(frozen=True)
class Failure:
    """Why a cell was not measured.

    Attributes:
        why: in one sentence; trace: where, of a defect; "" of what is refused in words.
    """

    why: str
    trace: str = ""


@dataclass(frozen=True)
class Task:
    """One cell for a worker; small, for it is sent.

    Attributes:
        make: makes what measures cells; called once a process. shared: tells one sweep's from another's.
        cell: which one; threads: of torch.
        folder: the working folder of the command, which relative paths are of.
        command: the process that hands out cells, where it is the worker's parent; 0 of a cluster.
    """

    make: Callable[[], Measure]
    shared: str
    cell: Any
    threads: int
    folder: str
    command: int = 0


@dataclass(frozen=True)
class Answer:
    """What comes back.

    Attributes:
        found: what the cell came to, or a `Failure`.
        ends: what must end the sweep, None where nothing must.
        told: warnings of the worker's log.
    """

    found: Any = None
    ends: Exception | None = None
    told: tuple[str, ...] = ()


_KEPT: dict[str, Measure] = {}
"""What measures cells in this process, under what tells one sweep's from another's: one at a time, for it holds a model."""
_ALONE = threading.Lock()
"""A cell changes the model that the process keeps, so that threads of one process, as Dask may have, take turns."""


def ends_sweep(error: Exception) -> bool:
    """Whether nothing can go on: held-out data that was asked for too early, or a disk or folder that takes no more files."""
    cause = error.__cause__
    if isinstance(error, WeightsmithError):
        broken = isinstance(cause, OSError) or (isinstance(cause, Exception) and disk_is_full(cause))
        return isinstance(error, HeldOutError) or broken
    return disk_is_full(error)


def attempted(measure: Measure, cell: Any) -> Any:
    """What a cell came to, or a `Failure`. Raises what ends the sweep, an interrupt included."""
    try:
        return measure(cell)
    except Exception as error:
        if ends_sweep(error):
            raise
        if isinstance(error, WeightsmithError):
            return Failure(str(error))
        return Failure(f"{type(error).__name__}: {cause_of(error)}", traceback.format_exc())


def answered(task: Task) -> Answer:
    """Measure a cell in this process, which is a worker."""
    if task.command:
        _end_with(task.command)
    elsewhere = task.folder != os.getcwd() and Path(task.folder).is_dir()
    with (
        _ALONE,
        _listening() as told,
        without_bars(),
        limited(task.threads),
        chdir(task.folder) if elsewhere else nullcontext(),
    ):
        try:
            found = attempted(_kept(task), task.cell)
        except Exception as error:
            return Answer(ends=_sendable(error), told=tuple(told))
    return Answer(found, told=tuple(told))


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let torch take so many threads while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_folder(folder: Path) -> None:
    """Raise `WeightsmithError` where a worker does not see the run's folder, so that nothing is made in another place."""
    if not (folder / "config.yaml").is_file():
        raise WeightsmithError(
            f"{folder} is not there: models, data and --runs-dir must lie on a disk that all machines of the cluster share, "
            "under one path"
        )


def _kept(task: Task) -> Measure:
    if task.shared not in _KEPT:
        _KEPT.clear()
        try:
            _KEPT[task.shared] = task.make()
        except WeightsmithError as error:
            raise WeightsmithError(f"a worker on {socket.gethostname()} cannot begin: {error}") from error.__cause__
    return _KEPT[task.shared]


def _sendable(error: Exception) -> Exception:
    """The error without what cannot be pickled; a defect as a text with its traceback."""
    if isinstance(error, HeldOutError):
        return HeldOutError(str(error))
    if isinstance(error, WeightsmithError):
        return WeightsmithError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError("".join(traceback.format_exception(error)))


class _Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect the library's warnings, which go nowhere else meanwhile."""
    logger, handler = logging.getLogger("weightsmith"), _Warnings()
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield handler.told
    finally:
        logger.handlers, logger.propagate = handlers, propagates


_WATCHED: set[int] = set()


def _end_with(command: int) -> None:
    """End this process soon after the one that it works for, were that killed: nobody would wait for what it measures."""
    if command in _WATCHED or sys.platform == "win32":
        return
    _WATCHED.add(command)

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
