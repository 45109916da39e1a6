"""The options of `edits`, the commands on a journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class EditsOptions:
    """What the commands on a journal of edits have: the run folder of `weightsmith edit --batch-size` or `bench`."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""


@dataclass(frozen=True, kw_only=True)
class ListEditsOptions(EditsOptions):
    """The edits in force, a line each."""


@dataclass(frozen=True, kw_only=True)
class ShowEditOptions(EditsOptions):
    """All that the journal has of one edit."""

    edit: Annotated[str, tyro.conf.Positional]
    """Its number, or its request's name."""


@dataclass(frozen=True, kw_only=True)
class UndoEditsOptions(EditsOptions):
    """Take the last batches back, bit by bit."""

    batches: int = 1
    """How many."""
    all: bool = False
    """All of them: the weights are those before the first edit."""


@dataclass(frozen=True, kw_only=True)
class RemoveEditOptions(EditsOptions):
    """Make it as if one edit had never been made: its batch and every later one are solved again without it."""

    edit: Annotated[str, tyro.conf.Positional]
    """Its number, or its request's name."""


@dataclass(frozen=True, kw_only=True)
class ReplayEditsOptions(EditsOptions):
    """Make the edited model anew from the weights before the first edit and the journal, and check it."""
