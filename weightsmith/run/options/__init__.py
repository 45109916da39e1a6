"""The options of every command, as dataclasses. Nothing heavy is imported here, so that `--help` answers at once."""

from weightsmith.run.options.ablate import AblateLoraOptions, AblateOptions, AblateReplayOptions
from weightsmith.run.options.artificial import ArtificialOptions
from weightsmith.run.options.bench import WorkbenchOptions
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.options.correct import (
    DEFAULT_DATA,
    STAGE_NAMES,
    BaselineOptions,
    DownloadOptions,
    JobOptions,
    RunOptions,
    Stage,
)
from weightsmith.run.options.doctor import DoctorOptions
from weightsmith.run.options.edits import (
    EditsOptions,
    ListEditsOptions,
    RemoveEditOptions,
    ReplayEditsOptions,
    ShowEditOptions,
    UndoEditsOptions,
)
from weightsmith.run.options.evaluate import EvaluateOptions
from weightsmith.run.options.export import ExportOptions
from weightsmith.run.options.files import read_yaml, to_yaml
from weightsmith.run.options.folder import FolderOptions, TrackedOptions
from weightsmith.run.options.knowledge import BenchOptions, CompareOptions, EditOptions, FactsOptions
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
from weightsmith.run.options.merge import MergeOptions

__all__ = [
    "DEFAULT_DATA",
    "STAGE_NAMES",
    "AblateLoraOptions",
    "AblateOptions",
    "AblateReplayOptions",
    "ArtificialOptions",
    "AttributionOptions",
    "BaselineOptions",
    "BenchOptions",
    "CompareOptions",
    "CompressOptions",
    "DoctorOptions",
    "DownloadOptions",
    "DrawnOptions",
    "EditOptions",
    "EditsOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FactsOptions",
    "FolderOptions",
    "JobOptions",
    "ListEditsOptions",
    "LocateOptions",
    "MergeOptions",
    "PairOptions",
    "PatchAttributionOptions",
    "PatchOptions",
    "RemoveEditOptions",
    "ReplayEditsOptions",
    "RunOptions",
    "ShowEditOptions",
    "Stage",
    "SweepOptions",
    "TraceOptions",
    "TrackedOptions",
    "UndoEditsOptions",
    "WorkbenchOptions",
    "read_yaml",
    "to_yaml",
]
