"""`--tracker` of the commands that train."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict

from weightsmith.run.folder import RunFolder
from weightsmith.run.options import FolderOptions, TrackedOptions
from weightsmith.train.tracking import check_trackers, tracked


def check_tracking(options: FolderOptions) -> None:
    """Raise `WeightsmithError` naming `--tracker` for one that is unknown or not installed."""
    if isinstance(options, TrackedOptions):
        check_trackers(options.tracker)


def tracking(options: FolderOptions, folder: RunFolder) -> AbstractContextManager[None]:
    """Send the rows of every training inside the block to the trackers that the options name, if any."""
    names = options.tracker if isinstance(options, TrackedOptions) else ()
    return tracked(names, folder.path, asdict(options))
