"""The life of a run folder around a command's work: refused or gone on with, set aside or put back, logged and locked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightsmith.errors import WeightsmithError, closest
from weightsmith.run.folder import RunFolder, existing_runs, new_name
from weightsmith.run.options.files import to_yaml
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.stored import check_asked, check_stored, check_strangers
from weightsmith.run.tracking import check_tracking, tracking

_log = logging.getLogger(__name__)

FREE = (
    "device", "resume", "overwrite", "run_name", "timestamp", "runs_dir", "checkpoint_dir", "log_dir", "results_dir",
    "cache_dir", "config", "tracker", "jobs", "backend", "address", "threads",
)  # fmt: skip
"""Options that may differ when a run is gone on with: they say where and how, not what."""

_MODEL = ("env.json", "model", "data_split.json", "data_split_indices.npz")
"""What a command leaves that trains a model first."""


@dataclass(frozen=True, kw_only=True)
class Kin:
    """The commands that share a run folder's ways: one of them may redo what another has left, and none else.

    Attributes:
        commands: their names, as events and pages have them.
        called: what a run of them is called: "locate".
        another: what a run of another of them is called: "another way to locate".
        results: patterns of the tables, figures and pages; what else lies in the folder is the user's.
        inside: patterns of what stays in the run folder wherever the tables go: edited models, cells of a sweep.
        checkpoints: patterns of what is finished of a run that was stopped, among the checkpoints.
        worth: patterns in the run folder: while one is there, a command that ends in an error leaves its run to be gone
            on with.
        free: options of these commands that may differ as well.
    """

    commands: tuple[str, ...]
    called: str
    another: str
    results: tuple[str, ...]
    inside: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    worth: tuple[str, ...] = ()
    free: tuple[str, ...] = ()

    def measured(self, folder: RunFolder) -> list[Path]:
        """What a run has measured, finished or not."""
        places = ((folder.results, self.results), (folder.path, self.inside), (folder.checkpoints, self.checkpoints))
        found = [path for place, patterns in places for pattern in patterns for path in place.glob(pattern)]
        return list(dict.fromkeys(found))

    def left(self, folder: RunFolder) -> list[Path]:
        """All that a run leaves, a model that it trained first included."""
        there = [path for name in ("config.yaml", *_MODEL) if (path := folder.path / name).exists()]
        return list(dict.fromkeys([*there, *folder.checkpoints.glob("checkpoint.pt"), *self.measured(folder)]))


@contextmanager
def session(options: FolderOptions, command: str, kin: Kin, stem: str) -> Iterator[RunFolder]:
    """The run's folder, while the block fills it.

    What an existing run holds is gone on with when asked, with the same options, or set aside until the new results are
    complete. Options that are refused leave nothing behind, and do not become those of the run.

    Args:
        stem: what a run without a name is called.

    Raises:
        WeightsmithError: a run that exists without `resume` or `overwrite`, that belongs to other commands, or that was
            measured with other options; a folder that another process works on.
    """
    _check(options)
    folder = RunFolder.named(options, new_name(options, stem))
    check_strangers(folder)
    fresh, before = not folder.path.exists(), kin.measured(folder)
    try:
        with folder.in_use(), folder.logged():
            folder.recover()
            stored = folder.config_text()
            if stored is not None:
                _check_same(options, folder, kin)
            elif options.resume:
                near = closest(folder.path.name, existing_runs(options.runs_dir))
                meant = f"; did you mean --run-name {near}?" if near else ""
                _log.warning("there is no run %s to go on with, so it begins%s", folder.path, meant)
            folder.log_event(command, "start")
            redone = kin.left(folder) if stored is not None and options.overwrite else []
            try:
                with folder.set_aside(redone), _cleared(folder, kin, bool(redone)), tracking(options, folder):
                    folder.write_config(options)
                    yield folder
            except BaseException as error:
                if isinstance(error, WeightsmithError):
                    folder.restore_config(stored)  # options that were refused must not become those of the run
                interrupted = isinstance(error, KeyboardInterrupt)
                folder.log_event(
                    command, "interrupted" if interrupted else "failed", why=str(error) or type(error).__name__
                )
                raise
            folder.log_event(command, "done")
    except WeightsmithError as error:
        # What a full disk stopped can be gone on with; options that were refused leave nothing, but a model that was trained.
        refused = error.__cause__ is None or isinstance(error.__cause__, WeightsmithError)
        started = any(folder.path.glob("checkpoints/*"))
        worth = any(next(folder.path.glob(pattern), None) for pattern in kin.worth)
        if fresh and not worth and (refused or not started):
            folder.remove(*(path for path in kin.measured(folder) if path not in before))
            folder.remove(folder.path / "config.yaml")
            if not (folder.path / "model").exists():
                folder.discard()
        raise


def would_fill(options: FolderOptions, kin: Kin, stem: str) -> RunFolder:
    """The run's folder that `session` would fill; nothing is written. Raises as it does."""
    _check(options)
    folder = RunFolder.named(options, new_name(options, stem))
    check_strangers(folder)
    _check_same(options, folder, kin)
    return folder


def at_least(options: object, least: dict[str, int]) -> None:
    """Raise `WeightsmithError` naming the flag unless each option, where it is there and given, is at least so much."""
    for name, bound in least.items():
        value = getattr(options, name, None)
        if value is not None and value < bound:
            raise WeightsmithError(f"{flag(name)} must be at least {bound}, not {value}: give {bound} or more")


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _check(options: FolderOptions) -> None:
    at_least(options, {"seed": 0})
    check_tracking(options)
    if options.seed >= 2**32 - 1:  # what the splits of scikit-learn take, the one after it included
        raise WeightsmithError(f"--seed must be below {2**32 - 1}, not {options.seed}: give 42 say")
    if options.resume and options.run_name is None:
        runs = existing_runs(options.runs_dir)
        there = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
        raise WeightsmithError(f"--resume goes on with an existing run: name it with --run-name ({there})")


def _check_same(options: FolderOptions, folder: RunFolder, kin: Kin) -> None:
    """Refuse an existing run unasked, the folder of another kind of run, and to mix what was measured with other options."""
    check_asked(options, folder)
    theirs = check_stored(options, folder, kin.commands, kin.called, kin.another)
    if theirs is None or options.overwrite or not kin.measured(folder):
        return
    mine = yaml.safe_load(to_yaml(options))
    other = [name for name in mine if name not in (*FREE, *kin.free) and theirs[name] != mine[name]]
    if other:
        asked = ", ".join(_said(name, theirs[name]) for name in other)
        raise WeightsmithError(
            f"{folder.path} was measured with other options ({asked}): give the same to go on, --overwrite to measure anew, "
            "or another --run-name"
        )


def _said(name: str, value: Any) -> str:
    """An option as one would type it."""
    if isinstance(value, bool) or value in (None, []):
        return flag(name) if value is True else flag(f"no_{name}") if value is False else f"no {flag(name)}"
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


@contextmanager
def _cleared(folder: RunFolder, kin: Kin, redone: bool) -> Iterator[None]:
    """When a run that is redone fails, none of its new files may stay among the old ones, which come back."""
    try:
        yield
    except BaseException:
        if redone:
            folder.remove(*kin.left(folder))
        raise


def distinct(name: str, values: Sequence[object], such_as: str) -> None:
    """Raise `WeightsmithError` unless an option that takes several values has some, each once."""
    if not values or len(set(values)) < len(values):
        raise WeightsmithError(f"{flag(name)} needs one or more different values, such as `{such_as}`")
