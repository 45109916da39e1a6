"""`--tracker` of the commands that train."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

from weightsmith.run.folder import RunFolder
from weightsmith.run.options.folder import FolderOptions, TrackedOptions


def check_tracking(options: FolderOptions) -> None:
    """Raise `WeightsmithError` naming `--tracker` for one that is unknown or not installed."""
    if isinstance(options, TrackedOptions) and options.tracker:
        from weightsmith.train.tracking import check_trackers  # brings torch along

        check_trackers(options.tracker)


def tracking(options: FolderOptions, folder: RunFolder) -> AbstractContextManager[None]:
    """Send the rows of every training inside the block to the trackers that the options name, if any."""
    if not (isinstance(options, TrackedOptions) and options.tracker):
        return nullcontext()
    from weightsmith.train.tracking import tracked

    return tracked(options.tracker, folder.path, asdict(options))
