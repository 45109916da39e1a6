"""What a run folder holds, looked at before a command goes on with it or writes into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from weightsmith.errors import WeightsmithError
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.folder import FolderOptions

_OURS = ("log.txt", "model", "models", "checkpoints")
"""What a run that was stopped at once may leave, beside hidden files, and what a user may have put there for it to take."""


def check_strangers(folder: RunFolder) -> None:
    """Raise `WeightsmithError` for a folder of files that no run has left, for a run would write among them."""
    if not folder.path.is_dir() or any((folder.path / name).exists() for name in ("config.yaml", "events.jsonl")):
        return
    there = sorted(
        path.name for path in folder.path.iterdir() if not path.name.startswith(".") and path.name not in _OURS
    )
    if there:
        raise WeightsmithError(
            f"{folder.path} holds other files ({_few(there)}) and no run: give another --run-name, or move them away"
        )


def check_asked(options: FolderOptions, folder: RunFolder) -> None:
    """Raise `WeightsmithError` for a run that exists where it is neither to be gone on with nor to be redone."""
    if folder.config_text() is not None and not (options.resume or options.overwrite):
        raise WeightsmithError(
            f"the run {folder.path} exists: give --resume to go on with it, --overwrite to redo it, or another --run-name"
        )


def check_stored(
    options: FolderOptions, folder: RunFolder, commands: Sequence[str], called: str, another: str = "another command"
) -> dict[str, Any] | None:
    """The options that an existing run was asked with; None where it has none, or is made anew as a whole.

    Args:
        commands: those whose runs may be gone on with, as events have them.
        called: what a run of them is called; another: what a run of other options of theirs is of.

    Raises:
        WeightsmithError: a run of other commands, or one whose options cannot be read or are not those of this version.
    """
    stored = folder.config_text()
    if stored is None:
        return None
    part = getattr(options, "stage", None) or getattr(options, "mode", None)
    whole = part in (None, "full") and not getattr(options, "skip_training", False)
    if any(event.get("stage") not in commands for event in folder.events()):
        raise WeightsmithError(f"{folder.path} holds a run of another command than {called}: give another --run-name")
    if whole and options.overwrite:
        return None
    folder.env()  # a damaged record is told before any work
    remedy = "give --overwrite to replace it, or another --run-name" if whole else "give another --run-name"
    try:
        theirs = yaml.safe_load(stored)
    except yaml.YAMLError:
        theirs = None
    if not isinstance(theirs, dict):
        raise WeightsmithError(f"{folder.path / 'config.yaml'} is damaged, so nobody knows what was asked: {remedy}")
    mine = [field.name for field in dataclasses.fields(options)]
    strange, absent = [str(name) for name in theirs if name not in mine], [name for name in mine if name not in theirs]
    if strange or absent:
        parts = [f"{word} {_few(names)}" for word, names in (("names", strange), ("lacks", absent)) if names]
        raise WeightsmithError(
            f"{folder.path} is of {another}, or of another version of weightsmith (its config.yaml "
            f"{' and '.join(parts)}): {remedy}"
        )
    return theirs


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
