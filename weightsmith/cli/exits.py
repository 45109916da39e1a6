"""What the exit status of `weightsmith` says: one table, for the command line, its help and the docs."""

from __future__ import annotations

from dataclasses import dataclass

from weightsmith.run import outcome


@dataclass(frozen=True)
class Exit:
    """One exit status: the number, and when it is given."""

    status: int
    when: str


DONE = Exit(0, "done")
REFUSED = Exit(
    1,
    "bad input, or the machine cannot go on (a full disk, no network): one sentence says what to do; also when `doctor` finds "
    "something broken",
)
FLAGS = Exit(2, "an unknown command or flag, or a value that a flag does not take")
PARTLY = Exit(
    outcome.PARTLY, "a sweep is done but for cells that failed: it says which and why; `--resume` measures them again"
)
INTERRUPTED = Exit(130, "stopped by Ctrl-C; what was finished is kept")

EXITS = (DONE, REFUSED, FLAGS, PARTLY, INTERRUPTED)
"""Every status that the command gives by itself, from small to large."""
