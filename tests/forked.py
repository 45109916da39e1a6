"""The command line in a process of its own that can be killed: a fork, which has everything imported already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from weightsmith import cli

PATIENCE = 240
"""Seconds for what takes a few on an idle machine."""


@dataclass(frozen=True)
class Forked:
    """A command at work; it leads a group of processes, as one in a terminal does.

    Attributes:
        process: of it; said: the file of what it says.
    """

    process: Any
    said: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def until(self, there: Callable[[], object]) -> None:
        """Wait until something is there; it is a failure if the command ends before."""
        wait_until(
            there, lambda: self.process.is_alive() or pytest.fail(f"it ended too early: {self.said.read_text()}")
        )

    def ended(self) -> int:
        """Wait for its end: its exit status, negative of a signal."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "it does not end"
        return int(self.process.exitcode)

    def kill(self) -> None:
        self.process.kill()
        self.ended()


def wait_until(there: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        meanwhile()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


@contextmanager
def forked(said: Path, *words: object, slowed: Callable[[], object] = lambda: None) -> Iterator[Forked]:
    """Begin a command; whatever happens, it does not outlive the block. `slowed` is called in its process before."""
    begun = Forked(started(_run, said, [str(word) for word in words], slowed), said)
    try:
        yield begun
    finally:
        begun.kill()


def started(work: Callable[..., object], *given: object) -> Any:
    """A process that does some work, a fork of this one."""
    context: Any = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=given)
    with warnings.catch_warnings():  # newer versions of Python warn of forks of processes with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _run(said: Path, words: list[str], slowed: Callable[[], object]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with said.open("w", buffering=1, encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        sys.stdout = sys.stderr = file
        slowed()
        status = 0
        try:
            cli.main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        finally:
            file.flush()
    os._exit(status)
