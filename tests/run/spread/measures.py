"""Cells that take no time; a module of its own, for workers import it."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightsmith.errors import HeldOutError, WeightsmithError


def make(place: Path, refused: str = "") -> Any:
    """What measures cells, made once a process: each time leaves a file behind."""
    if refused:
        raise WeightsmithError(refused)
    (place / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()
    return partial(measure, place)


def measure(place: Path, cell: tuple[str, int]) -> Any:
    kind, number = cell
    if kind == "refused":
        raise WeightsmithError(f"{number} cannot be measured: give another")
    if kind == "defect":
        return number // 0
    if kind == "full":
        raise WeightsmithError("the disk is full") from OSError(28, "No space left on device")
    if kind == "held out":
        raise HeldOutError("held-out data was asked for")
    if kind == "warned":
        logging.getLogger("weightsmith.tests").warning("%d is odd", number)
    if kind == "killed" and os.getpid() != number:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "both":  # wait until the other worker has begun, however long it takes to import
        deadline = time.monotonic() + 240
        while len({path.name.split("-")[1] for path in place.glob("made-*")}) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # and takes the next
    if kind in ("both", "where"):
        return os.getpid(), torch.get_num_threads(), os.getcwd()
    if kind == "random":
        return torch.randn(number, number, generator=torch.Generator().manual_seed(number)).inverse().sum().item()
    return number**2


def alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
