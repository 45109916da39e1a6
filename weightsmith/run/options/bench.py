"""The options of `bench`, the page on which a person corrects a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class WorkbenchOptions:
    """Correct a classifier's errors by hand on a local page: see why, name the right class, preview, keep, undo.

    Every edit that is kept is in the journal of the run, which `weightsmith edits` reads too.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run of `weightsmith run` whose train stage is done."""

    edit_from: str | None = None
    """Where the errors come from: val, train, or the path of a labelled data set of a new site, as `run` has it [the run's
    new site where it had one, else val]. Held-out images are never shown."""
    stream_ratio: float | None = None
    """Share of that data set which is shown; the rest is held out [the run's]."""
    data_path: str | None = None
    """Where the run's data lie now, if they were moved."""
    max_images: int = 2000
    """Images that are looked at, of the part with the errors and of the validation part; more are drawn at random."""
    max_preserved: int = 5000
    """Training images that an edit preserves; more are drawn at random."""

    edit_method: str | None = None
    """Which editor makes the edits [the one that the journal has, else what `--edit-method auto` takes: the patcher where
    the model has a CLS token, else alphaedit]."""
    reach: Literal["image", "alike"] | None = None
    """The patcher: `image` corrects the images that are named and leaves all others as they are, `alike` moves what those have
    in common as well, which repairs more and breaks more; for many images at once [image]."""
    trust_threshold: float = 0.8
    """Least trust score, from 0 to 1, of an edit that is kept without a warning."""
    trust_action: Literal["warn", "scale", "rollback"] = "warn"
    """What becomes of an edit below it: the page warns, shows the largest smaller edit that is trusted, or refuses it."""
    trust_heldout_samples: int = 128
    """Validation images that judge the edits and are never edited; at most half of those that the model gets right."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address lets everybody who reaches it change the run."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    open_browser: bool = True
    """Open the page in a browser, where the command runs at a terminal."""

    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), or a torch device."""
    cache_dir: str | None = None
    """Where statistics and unpacked data are kept [the run's, else the platform's cache folder]."""
