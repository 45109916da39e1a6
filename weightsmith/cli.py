"""The command line: `weightsmith run`, `bench`, `baseline`, `compress`, `locate`, `edit`, `edits`, `compare`, `evaluate`,
`ablate`, `artificial`, `merge`, `export`, `facts`, `download`.

Only the options are imported before a command is known, so that help answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from weightsmith import __version__
from weightsmith.errors import WeightsmithError
from weightsmith.files import disk_is_full, user_path
from weightsmith.progress import CONSOLE
from weightsmith.run.options import (
    AblateLoraOptions,
    AblateOptions,
    AblateReplayOptions,
    ArtificialOptions,
    AttributionOptions,
    BaselineOptions,
    CompareOptions,
    CompressOptions,
    DownloadOptions,
    EditOptions,
    EditsOptions,
    EvaluateOptions,
    ExportOptions,
    FactsOptions,
    ListEditsOptions,
    LocateOptions,
    MergeOptions,
    PatchAttributionOptions,
    PatchOptions,
    RemoveEditOptions,
    ReplayEditsOptions,
    RunOptions,
    ShowEditOptions,
    TraceOptions,
    UndoEditsOptions,
    WorkbenchOptions,
    read_yaml,
)

_COMMANDS: dict[str, type[Any]] = {
    "run": RunOptions,
    "baseline": BaselineOptions,
    "compress": CompressOptions,
    "edit": EditOptions,
    "compare": CompareOptions,
    "evaluate": EvaluateOptions,
    "merge": MergeOptions,
    "export": ExportOptions,
    "artificial": ArtificialOptions,
    "facts": FactsOptions,
    "download": DownloadOptions,
}
_LOCATE: dict[str, type[LocateOptions]] = {
    "trace": TraceOptions,
    "patch": PatchOptions,
    "attribution": AttributionOptions,
    "astra": PatchAttributionOptions,
}
_ABLATE: dict[str, type[AblateOptions]] = {"lora": AblateLoraOptions, "replay": AblateReplayOptions}
_EDITS: dict[str, type[EditsOptions]] = {
    "list": ListEditsOptions,
    "show": ShowEditOptions,
    "undo": UndoEditsOptions,
    "remove": RemoveEditOptions,
    "replay": ReplayEditsOptions,
}
_GONE_ON_WITH = (
    RunOptions, CompressOptions, LocateOptions, EditOptions, CompareOptions, EvaluateOptions, AblateOptions, FactsOptions,
    ArtificialOptions,
)  # fmt: skip
"""Commands that take the options of an existing run for their defaults when they go on with it."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `weightsmith` command. Exits 0, 1 on bad input, 2 on bad flags, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        Console().print(f"weightsmith {__version__}", highlight=False)
        return
    handler = RichHandler(console=CONSOLE, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("weightsmith")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        options = _parse(given)
        _run(options)
    except WeightsmithError as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _fail(
            "stopped by Ctrl-C; what was finished is kept: give --resume and the run's --run-name to go on", INTERRUPTED
        )
    except (FileExistsError, NotADirectoryError) as error:
        _fail(f"{error.filename} cannot be used ({error.strerror}): a file is where a folder should be", 1)
    except OSError as error:
        if not disk_is_full(error):
            raise
        _fail(f"the disk is full ({error.filename or 'while writing'}): free some space and give --resume to go on", 1)


def _parse(given: list[str]) -> Any:
    """The options of the command asked for; a config file or an existing run gives the defaults."""
    members = [_member(name, kind, given[1:] if given[:1] == [name] else None) for name, kind in _COMMANDS.items()]
    ways = [_member(name, kind, given[2:] if given[:2] == ["locate", name] else None) for name, kind in _LOCATE.items()]
    about = "Find what in a trained model carries a decision: trace, patch, attribution, astra."
    members.append(Annotated[_union(ways), tyro.conf.subcommand("locate", description=about, prefix_name=False)])
    ways = [_member(name, kind, given[2:] if given[:2] == ["ablate", name] else None) for name, kind in _ABLATE.items()]
    about = "Vary one choice of an editor and measure what it does: lora, replay."
    members.append(Annotated[_union(ways), tyro.conf.subcommand("ablate", description=about, prefix_name=False)])
    ways = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in _EDITS.items()]
    about = "What the journal of `edit --batch-size` or `bench` has, and taking edits back: list, show, undo, remove, replay."
    members.append(Annotated[_union(ways), tyro.conf.subcommand("edits", description=about, prefix_name=False)])
    members.append(Annotated[WorkbenchOptions, tyro.conf.subcommand("bench", prefix_name=False)])
    return tyro.cli(
        _union(members),
        args=given,
        prog="weightsmith",
        description="Correct a trained model without retraining it, and prove what changed.",
    )


def _member(name: str, kind: type[Any], flags: list[str] | None) -> Any:
    """A command with its defaults, which a config file or an existing run among its flags may give."""
    default = kind() if flags is None else _defaults(kind, flags)
    return Annotated[kind, tyro.conf.subcommand(name, default=default, prefix_name=False)]


def _union(members: Sequence[Any]) -> Any:
    union: Any = members[0]
    for member in members[1:]:
        union |= member
    return union


def _defaults(kind: type[Any], flags: list[str]) -> Any:
    """Defaults: the options of the run that is gone on with, under those of `--config`."""
    base = kind()
    if kind in (DownloadOptions, ExportOptions):
        return base
    values = {name: _flag(flags, name) for name in ("run-name", "runs-dir", "stage", "mode", "config")}
    folder = _flag(flags, "output-dir") if kind is EvaluateOptions else None
    if folder and not values["run-name"]:
        place = user_path(folder)
        values |= {"run-name": place.name, "runs-dir": str(place.parent)}
    part = values["stage"] or (values["mode"] if kind is CompressOptions else None)
    goes_on = part not in (None, "full") or bool({"--resume", "--skip-training", "--skip_training"} & set(flags))
    if issubclass(kind, _GONE_ON_WITH) and values["run-name"] and goes_on:
        stored = user_path(values["runs-dir"] or base.runs_dir) / values["run-name"] / "config.yaml"
        if stored.is_file():
            base = _as_asked(stored, base)
    if values["config"]:
        base = read_yaml(user_path(values["config"]), base)
    return base


def _as_asked(stored: Path, base: Any) -> Any:
    """The options of an existing run, without those that say what is to be done with its folder."""
    again: dict[str, Any] = {"resume": False, "overwrite": False, "timestamp": False, "config": None}
    if isinstance(base, RunOptions):
        again["stage"] = "full"
    elif not _fits(stored, base):
        return base  # it is of another command, which is told later
    if isinstance(base, ArtificialOptions):
        again["stage"] = "full"
    if isinstance(base, CompressOptions):
        again |= {"mode": "full", "skip_training": False}
    return replace(read_yaml(stored, base), **again)


def _fits(stored: Path, base: Any) -> bool:
    """Whether a run's config names just the options of this command."""
    try:
        entries = yaml.safe_load(stored.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(entries, dict) and entries.keys() == {field.name for field in fields(base)}


def _flag(flags: list[str], name: str) -> str | None:
    """The value of one flag before the real parse; `--a-b`, `--a_b` and `--a-b=v` are the same."""
    for place, word in enumerate(flags):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == f"--{name}":
            if equals:
                return value
            return flags[place + 1] if place + 1 < len(flags) else None
    return None


def _run(options: Any) -> None:
    command: Callable[[Any], object]
    if isinstance(options, RunOptions):
        from weightsmith.run.pipeline import run as command
    elif isinstance(options, BaselineOptions):
        from weightsmith.run.baseline import baseline as command
    elif isinstance(options, CompressOptions):
        from weightsmith.run.compress import compress as command
    elif isinstance(options, LocateOptions):
        from weightsmith.run.locate import locate as command
    elif isinstance(options, EditOptions):
        from weightsmith.run.edit import edit as command
    elif isinstance(options, EditsOptions):
        from weightsmith.run.edits import edits as command
    elif isinstance(options, WorkbenchOptions):
        from weightsmith.run.bench.command import bench as command
    elif isinstance(options, CompareOptions):
        from weightsmith.run.compare import compare as command
    elif isinstance(options, EvaluateOptions):
        from weightsmith.run.evaluate import evaluate as command
    elif isinstance(options, AblateOptions):
        from weightsmith.run.ablate import ablate as command
    elif isinstance(options, MergeOptions):
        from weightsmith.run.merge import merge as command
    elif isinstance(options, ExportOptions):
        from weightsmith.run.export import export as command
    elif isinstance(options, ArtificialOptions):
        from weightsmith.run.artificial.command import artificial as command
    elif isinstance(options, FactsOptions):
        from weightsmith.run.fact_run import facts as command
    else:
        from weightsmith.data.download import download

        path: Path = download(options.name, options.size, options.to)
        Console().print(f"{path} is complete and its MD5 is right", soft_wrap=True)
        return
    command(options)


def _fail(text: str, status: int) -> None:
    CONSOLE.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
    raise SystemExit(status)
