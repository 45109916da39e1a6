"""What is told of cells that failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightsmith.files import remove, write_text
from weightsmith.run.folder import RunFolder
from weightsmith.run.spread.work import Failure

_SHOWN = 5
"""Failures that are told in full."""


def kept_failure(place: Path, failure: Failure | None) -> None:
    """Keep the traceback of a defect beside the file of its cell, and none where there is none."""
    beside = place.with_suffix(".traceback.txt")
    if failure is not None and failure.trace:
        write_text(beside, failure.trace)
    else:
        remove(beside)


def to_redo(
    command: str,
    folder: RunFolder,
    failed: Sequence[tuple[str, str]],
    total: int,
    table: str,
    called: str,
    does: str = "measures",
) -> list[str]:
    """Sentences: why cells failed, the first of them, and how they are measured again; none where none failed.

    Args:
        failed: what each is called, and why it failed; called: what they are together, "cells".
    """
    if not failed:
        return []
    told = [f"{name} failed: {why}" for name, why in failed[:_SHOWN]]
    where = f" ({table} says why)" if len(failed) > _SHOWN else ""
    again = f"weightsmith {command} --runs-dir {folder.path.parent} --run-name {folder.path.name} --resume"
    them = "them" if len(failed) > 1 else "it"
    return [*told, f"{len(failed)} of {total} {called} failed{where}: `{again}` {does} {them} again"]
