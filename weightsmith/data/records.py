"""JSON files that hold a list of records, one a prompt or a fact: what their readers share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path

_NAMES = ("name", "known_id", "case_id")
"""Where a record says what it is called; the first that is there."""


@dataclass(frozen=True, eq=False)
class Records:
    """The list that a file holds, its items unchecked.

    Attributes:
        path: as it was given.
        rows: one item a record, at least one.
        fingerprint: SHA-256 (hex) of the file's bytes.
    """

    path: str
    rows: list[Any]
    fingerprint: str

    def where(self, number: int) -> str:
        """A record, as an error names it."""
        return f"record {number} of {self.path}"

    def names(self) -> list[str]:
        """A name for each record: its own, else its number; one that an earlier record has gets its number behind it."""
        return _names(self.rows)


def read_records(path: str | Path, called: str, things: str, forms: str) -> Records:
    """Read a JSON list.

    Args:
        called: what an error calls the file, "--data-path facts.json" say.
        things: what the list is of, "prompts" say.
        forms: the layouts that are read, to stand behind "give".

    Raises:
        WeightsmithError: no such file, no JSON, no list, or an empty one.
    """
    try:
        content = user_path(path).read_bytes()
        rows = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise WeightsmithError(f"{called} cannot be read: give {forms}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsmithError(f"{called} is no JSON file ({error}): give {forms}") from error
    if not isinstance(rows, list) or not rows:
        raise WeightsmithError(f"{called} holds no list of {things}: give {forms}")
    return Records(str(path), rows, hashlib.sha256(content).hexdigest())


def _names(rows: Sequence[Any]) -> list[str]:
    taken: dict[str, None] = {}
    for number, row in enumerate(rows):
        given = row if isinstance(row, dict) else {}
        name = str(next((given[key] for key in _NAMES if key in given), number))
        while name in taken:  # a name stands for one record in every table
            name = f"{name} (record {number})"
        taken[name] = None
    return list(taken)
