"""What a command came to: one value that the command line turns into text for people or into JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


PARTLY = 3
"""The exit status of a sweep that is done but for cells that failed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What a command came to.

    Attributes:
        command: its name, as it is typed: "locate patch".
        folder: what it filled, None where it fills no folder; page: the file to read first.
        figures: name → the headline numbers as rows or a mapping, of what JSON knows (NaN is allowed and becomes null).
        summary, notes: sentences for people: what was done, and what a reader must know.
        shown: what a person at the terminal sees, in order: tables, or sentences as text without markup.
        closing: the rest of the last line, which begins with the folder: "holds everything".
        status: the exit status, 0 where nothing is wrong.
    """

    command: str
    folder: Path | None = None
    page: Path | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    summary: Sequence[str] = ()
    notes: Sequence[str] = ()
    shown: Sequence[RenderableType] = ()
    closing: str = ""
    status: int = 0

    def last_line(self) -> str:
        """What follows the folder in the last line: that it holds everything, and which page to read."""
        read = f"; the page to read is {self.page}" if self.page is not None else ""
        return f"{self.closing or 'holds everything'}{read}"
