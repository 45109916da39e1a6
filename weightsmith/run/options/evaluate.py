"""The options of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.run.options.correct import DEFAULT_DATA
from weightsmith.run.options.folder import FolderOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(FolderOptions):
    """Measure trained image classifiers side by side: accuracy, confidence, time and size."""

    model_paths: tuple[str, ...] = ()
    """Classifiers: run folders, Hugging Face folders or hub names."""
    auto_find: str | None = None
    """A folder: every classifier below it joins them, sorted by name; what cannot be read is told and left out."""
    baseline: str | None = None
    """The one that the others are measured against, which joins them where it is not among them [the first]."""
    data_path: str = DEFAULT_DATA
    """Images, as for `run`."""
    part: Literal["auto", "test", "val"] = "auto"
    """Which images: `auto` takes what the models' run holds out, else the data's test part, else its validation part, else a
    fifth of it; test and val are those of the data."""
    batch_size: int = 64
    """Images a pass while predicting."""
    tolerance: float = 1.0
    """Percentage points of accuracy that a recommended faster model may lose against the baseline."""
    rounds: int = 30
    """Passes of each model that are timed at batch sizes 1, 8 and 64, the models in turn; fewer, but six at least, where those
    of a batch size would take more than a minute."""
    output_dir: str | None = None
    """The run's folder itself, in place of --runs-dir and --run-name."""
