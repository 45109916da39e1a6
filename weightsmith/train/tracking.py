"""Trainings told to experiment trackers, TensorBoard or Weights & Biases say, through accelerate's trackers.

`tracked` is put around a command's work; every training inside it sends its row of each epoch, whatever trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import cause_of

_PROJECT = "weightsmith"
_NAMED = "checkpoint"
"""The checkpoint of a command's only training; one of another name names its training's curves."""
_ACTIVE: ContextVar[Tracking | None] = ContextVar("weightsmith_trackers", default=None)


@dataclass(frozen=True, eq=False)
class Tracking:
    """Trackers that are open."""

    trackers: Sequence[Any]

    def log(self, row: Mapping[str, float], checkpoint: Path) -> None:
        """Send a row of an epoch; `epoch` is its step, the others are curves."""
        training = checkpoint.stem
        values = {
            name if training == _NAMED else f"{training}/{name}": float(value)
            for name, value in row.items()
            if name != "epoch"
        }
        for tracker in self.trackers:
            tracker.log(values, step=int(row["epoch"]))


def check_trackers(names: Sequence[str]) -> None:
    """Raise `WeightsmithError` for a tracker that accelerate does not know, or whose package is missing."""
    if not names:
        return
    if find_spec("accelerate") is None:
        raise WeightsmithError("--tracker needs accelerate: pip install 'weightsmith[trackers]'")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    there = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise WeightsmithError(f"--tracker {name} is no tracker of accelerate's: {did_you_mean(name, known)}")
        if name not in there:
            package = "'weightsmith[trackers]'" if name == "tensorboard" else name
            raise WeightsmithError(f"--tracker {name} needs a package that is missing: pip install {package}")
    if len(set(names)) < len(names):
        raise WeightsmithError("--tracker names one twice: give each once")


@contextmanager
def tracked(names: Sequence[str], folder: Path, config: Mapping[str, object]) -> Iterator[None]:
    """Send the rows of every training inside the block to these trackers.

    Args:
        folder: of the run, whose name the trackers get; those that write files do so in its `trackers/`.
        config: what the run was asked, stored where the tracker has a place for it.

    Raises:
        WeightsmithError: as `check_trackers`, or a tracker that cannot be opened, without a login say.
    """
    if not names:
        yield
        return
    check_trackers(names)
    with ExitStack() as stack:
        stack.enter_context(_accelerate())
        trackers = [stack.enter_context(_opened(name, folder, config)) for name in names]
        token = _ACTIVE.set(Tracking(trackers))
        stack.callback(_ACTIVE.reset, token)
        yield


def log_epoch(row: Mapping[str, float], checkpoint: Path) -> None:
    """Tell the trackers that are open, if any, of an epoch of the training with this checkpoint."""
    active = _ACTIVE.get()
    if active is not None:
        active.log(row, checkpoint)


@contextmanager
def _accelerate() -> Iterator[None]:
    """The state of accelerate that its loggers ask for, gone afterwards where it was not there before."""
    from accelerate import PartialState

    there = bool(PartialState._shared_state)
    PartialState()
    try:
        yield
    finally:
        if not there:
            PartialState._reset_state()


@contextmanager
def _opened(name: str, folder: Path, config: Mapping[str, object]) -> Iterator[Any]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        place = {"logging_dir": str(folder / "trackers")} if kind.requires_logging_directory else {}
        tracker = kind(folder.name if place else _PROJECT, **place)
        if hasattr(tracker, "start"):
            tracker.main_process_only = False  # this is the only process
            tracker.start()
        tracker.store_init_configuration({key: _plain(value) for key, value in config.items() if value is not None})
    except Exception as error:  # each tracker has types of its own
        raise WeightsmithError(
            f"--tracker {name} cannot be opened ({cause_of(error)}): log in to it, or leave it out"
        ) from error
    try:
        yield tracker
    finally:
        tracker.finish()


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else str(value)
