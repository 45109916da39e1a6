"""A progress bar with the time left, on a terminal only: nothing is drawn into a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console

CONSOLE = Console(stderr=True)
"""Where bars are drawn and the log is shown: one console, so that neither writes over the other."""


_DRAWN: ContextVar[bool] = ContextVar("drawn", default=True)
"""Whether bars are drawn at all."""


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw no bars while the block runs: several processes that share a terminal would draw over each other."""
    token = _DRAWN.set(False)
    try:
        yield
    finally:
        _DRAWN.reset(token)


class Advance(Protocol):
    """Call it with the work done since the last call, and words to show beside the bar."""

    def __call__(self, done: float = 1, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float | None, start: float = 0, *, of_bytes: bool = False) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        total: the amount of work, None when unknown; `start` of it is done already.
        of_bytes: the work is counted in bytes.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    )
    columns = (
        TextColumn("{task.description}", markup=False),  # a file name may hold [brackets]
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=CONSOLE, transient=True, disable=not (CONSOLE.is_terminal and _DRAWN.get())) as bar:
        task = bar.add_task(title, total=total, completed=int(start), note="")

        def advance(done: float = 1, note: str = "") -> None:
            bar.update(task, advance=done)
            if note:
                bar.update(task, note=note)

        yield advance
