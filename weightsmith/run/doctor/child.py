"""Python code run in a child process, so that whatever it does to a process it does not do to this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 180.0
"""Seconds that a child may take: the first import of torch reads gigabytes."""


@dataclass(frozen=True)
class Answer:
    """What a child said.

    Attributes:
        entries: the object that it wrote; empty where it failed.
        error: why it failed, its last line of stderr; "" where it did not.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def asked(code: str, seconds: float = PATIENCE) -> Answer:
    """What code writes as JSON on the last line of stdout."""
    try:
        done = subprocess.run(  # noqa: S603  (our own code, by our own interpreter)
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer in {seconds:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        try:
            return Answer(json.loads(lines[-1]))
        except ValueError:
            return Answer(error=f"it wrote {lines[-1]!r}")
    if done.returncode < 0:
        return Answer(error=f"it was ended by signal {-done.returncode}")
    said = done.stderr.strip().splitlines()
    return Answer(error=said[-1] if said else f"exit status {done.returncode}")
