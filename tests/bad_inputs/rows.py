"""What a row of the table of bad inputs is, and how one is tried.

The table itself is in the files beside this one, a craft each: what is typed behind the words that all rows of a group share,
and what the one sentence has to name. `elsewhere` lists what the issues name, with the row or the test that it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REMEDY = re.compile(r": |such as|at least|exactly|must be")
"""Where a sentence says what to do."""
Makes = str | bytes | Callable[[Path], object]
"""What a file holds, or what writes it when it is called with its path."""


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        words: typed behind those of its group. `{tmp}`, `{runs}` and `{out}` are folders of the test, `{finished}` and other
            names in braces are fixtures.
        names: what the sentence has to say: the flag or file, and what to do.
        what: it is, where the words do not say so [the words].
        files: name in `{tmp}` → what it holds.
        status: that the command ends with; 2 where the words cannot be read at all.
    """

    words: tuple[str, ...]
    names: tuple[str, ...]
    what: str = ""
    files: Mapping[str, Makes] = field(default_factory=dict)
    status: int = 1

    @property
    def title(self) -> str:
        return self.what or " ".join(self.words)


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same words.

    Attributes:
        issue: that named such inputs first; craft: and what it is about.
        given: the words, good ones.
        rows: of bad ones.
        files: that the words need, as in a row.
        fixtures: that must be there while the command runs.
    """

    issue: int
    craft: str
    given: tuple[str, ...]
    rows: tuple[Row, ...]
    files: Mapping[str, Makes] = field(default_factory=dict)
    fixtures: tuple[str, ...] = ()

    def title(self, row: Row) -> str:
        return f"{self.craft}: {row.title}"


def flags(*pairs: tuple[list[str], list[str]], status: int = 1) -> tuple[Row, ...]:
    """Rows of (what is typed, what the sentence names)."""
    return tuple(Row(tuple(words), tuple(names), status=status) for words, names in pairs)


class _Places(dict[str, object]):
    """Folders by name, and fixtures where a word asks for them."""

    def __init__(self, request: pytest.FixtureRequest, **places: Path) -> None:
        super().__init__(places)
        self._request = request

    def __missing__(self, name: str) -> object:
        return self._request.getfixturevalue(name)


def tried(request: pytest.FixtureRequest, weightsmith: Any, folder: Path, group: Group, row: Row) -> None:
    """Type the words: one sentence that names what it has to, the status, no traceback, and nothing left behind."""
    for name, makes in {**group.files, **row.files}.items():
        path = folder / name
        if callable(makes):
            makes(path)
        elif isinstance(makes, bytes):
            path.write_bytes(makes)
        else:
            path.write_text(makes, encoding="utf-8")
    for fixture in group.fixtures:
        request.getfixturevalue(fixture)
    places = _Places(request, tmp=folder, runs=folder / "runs", out=folder / "out")
    words = [word.format_map(places) for word in (*group.given, *row.words)]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    seen = weightsmith(*words)
    lines = seen.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    assert seen.status == row.status, seen
    assert len(errors) == 1, lines
    assert "Traceback" not in seen.err + seen.out
    for name in row.names:
        assert name in errors[0], errors[0]
    assert REMEDY.search(errors[0].removeprefix("error: ")) or row.status == 2, f"no remedy: {errors[0]}"
    runs, kept = folder / "runs", ("cache",)  # what was read of good data may be kept for the next time
    left = [path for path in runs.glob("*") if path.name not in kept]
    assert not left, f"something is left behind: {left}"
    assert not list(folder.rglob("*.tmp")), "something is half-written"
    assert not (folder / "out").exists(), "something is half-written"
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    assert after == before, "what the user gave was changed"
