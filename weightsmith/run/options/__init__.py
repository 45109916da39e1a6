"""The options of every command, as dataclasses. Nothing heavy is imported here, so that `--help` answers at once."""

from weightsmith.run.options.correct import (
    DEFAULT_DATA,
    STAGE_NAMES,
    BaselineOptions,
    DownloadOptions,
    JobOptions,
    RunOptions,
    Stage,
)
from weightsmith.run.options.files import read_yaml, to_yaml
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.knowledge import CompareOptions, EditOptions, FactsOptions
from weightsmith.run.options.locate import (
    AttributionOptions,
    DrawnOptions,
    LocateOptions,
    PairOptions,
    PatchAttributionOptions,
    PatchOptions,
    SweepOptions,
    TraceOptions,
)

__all__ = [
    "DEFAULT_DATA",
    "STAGE_NAMES",
    "AttributionOptions",
    "BaselineOptions",
    "CompareOptions",
    "DownloadOptions",
    "DrawnOptions",
    "EditOptions",
    "FactsOptions",
    "FolderOptions",
    "JobOptions",
    "LocateOptions",
    "PairOptions",
    "PatchAttributionOptions",
    "PatchOptions",
    "RunOptions",
    "Stage",
    "SweepOptions",
    "TraceOptions",
    "read_yaml",
    "to_yaml",
]
