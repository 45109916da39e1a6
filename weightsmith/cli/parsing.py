"""From the words that were typed to the options of one command; only that command's options are built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, fields, make_dataclass, replace
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro import _resolver

from weightsmith.cli.commands import COMMANDS, GROUPS, Command, find, first_words, ways
from weightsmith.cli.wording import UsageError, usage_error
from weightsmith.errors import WeightsmithError

SHELLS = ("bash", "zsh", "tcsh", "fish")
"""What `--completion` knows."""

_BARE = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class Told:
    """How a command tells what it did."""

    json: bool = False
    """Write one JSON object to stdout when it is done: folder, files, headline figures, notes; or the error."""


@dataclass(frozen=True, kw_only=True)
class Planned(Told):
    """The same of a command that takes long."""

    dry_run: bool = False
    """Say what would be done, with its cost in block forwards, memory and time; nothing is written."""


@dataclass(frozen=True)
class Call:
    """One call of the command line: a command, its options, and how it tells what it did."""

    command: Command
    options: Any
    json: bool = False
    dry_run: bool = False


def parse(given: Sequence[str]) -> Call:
    """The call that the words make; a config file or an existing run gives the defaults.

    Raises:
        UsageError: an unknown command or flag, or a value that a flag does not take.
        WeightsmithError: a config file that cannot be read.
        SystemExit: with 0, after the help of a command.
    """
    first, *rest = given or [""]
    if not first or first.startswith("-"):
        named = f"weightsmith {first} names no command" if first else "weightsmith needs a command"
        raise UsageError(f"{named}: give one of {', '.join(first_words())}, or --help")
    name = first
    if first in GROUPS:
        way, *rest = rest or [""]
        if not way or way.startswith("-"):
            raise UsageError(f"weightsmith {first} needs one of {', '.join(ways(first))} behind it")
        name = f"{first} {way}"
    try:
        command = find(name)
    except LookupError as error:
        raise UsageError(str(error.args[0])) from None
    return _call(command, rest)


def completion(shell: str) -> str:
    """The script by which a shell completes commands, flags and the values of flags that take a few."""
    members: list[Any] = [_subcommand(one, one.name) for one in COMMANDS if " " not in one.name]
    for group, about in GROUPS.items():
        inner = [_subcommand(one, one.name.partition(" ")[2]) for one in COMMANDS if one.name.startswith(f"{group} ")]
        members.append(Annotated[_union(inner), tyro.conf.subcommand(group, description=about, prefix_name=False)])
    written = StringIO()
    with suppress(SystemExit), redirect_stdout(written):
        tyro.cli(_union(members), args=["--tyro-write-completion", shell, "-"], prog="weightsmith")
    script = written.getvalue()
    # Where there is nothing of ours to propose, bash proposes files.
    return script.replace("complete -F ", "complete -o bashdefault -o default -F ") if shell == "bash" else script


def _call(command: Command, words: Sequence[str]) -> Call:
    kind = command.kind()
    prog = f"weightsmith {command.name}"
    default = None if {"-h", "--help"} & set(words) else _defaults(command, kind, list(words))
    told, seen = _typed(kind, command, default if default is not None else _plain(kind)), StringIO()
    try:
        with redirect_stderr(seen), _plain_types_told_by_python():
            found: Any = tyro.cli(told, args=list(words), prog=prog, description=kind.__doc__)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise usage_error(seen.getvalue(), command.name, kind) from None
    how = found.how
    return Call(command, found.options, how.json, getattr(how, "dry_run", False))


@contextmanager
def _plain_types_told_by_python() -> Iterator[None]:
    """Meanwhile whether a default is of its field's type is told without typeguard where Python can tell it.

    tyro asks typeguard of every `X | None` and `tuple[X, ...]`, and to import that takes 0.2 s, more than all else of a start.
    """
    asks = _resolver.is_instance

    def is_instance(typ: Any, value: Any) -> bool:
        origin, inner = get_origin(typ), get_args(typ)
        if origin is UnionType:
            return any(is_instance(one, value) for one in inner)
        if origin is tuple and inner[1:] == (...,):
            return isinstance(value, tuple) and all(is_instance(inner[0], one) for one in value)
        return asks(typ, value)

    _resolver.is_instance = is_instance
    try:
        yield
    finally:
        _resolver.is_instance = asks


def _typed(kind: type[Any], command: Command, default: Any) -> Any:
    """What is parsed: the options, under their own names, and behind them how the command tells what it did."""
    how: Any = Planned if command.plans else Told
    options: Any = Annotated[kind, _BARE]
    own: Any = ("options", options) if default is None else ("options", options, field(default=default))
    flags = ("how", Annotated[how, _BARE, tyro.conf.FlagCreatePairsOff], field(default=how()))
    return make_dataclass("Call", [own, flags], frozen=True, kw_only=True, namespace={"__doc__": kind.__doc__})


def _subcommand(command: Command, name: str) -> Any:
    typed = _typed(command.kind(), command, _plain(command.kind()))
    return Annotated[typed, tyro.conf.subcommand(name, description=command.about, prefix_name=False), _BARE]


def _union(members: Sequence[Any]) -> Any:
    union: Any = members[0]
    for member in members[1:]:
        union |= member
    return union


def _plain(kind: type[Any]) -> Any:
    """The options as they are where nobody says anything; None for those that must be told something."""
    try:
        return kind()
    except TypeError:
        return None


def _defaults(command: Command, kind: type[Any], flags: list[str]) -> Any:
    """Defaults: the options of the run that is gone on with, under those of `--config`."""
    base = _plain(kind)
    if base is None or not hasattr(base, "config"):
        return base
    from weightsmith.files import user_path

    values = {name: _flag(flags, name) for name in ("run-name", "runs-dir", "stage", "mode", "config")}
    folder = _flag(flags, "output-dir") if command.name == "evaluate" else None
    if folder and not values["run-name"]:
        place = user_path(folder)
        values |= {"run-name": place.name, "runs-dir": str(place.parent)}
    part = values["stage"] or (values["mode"] if command.name == "compress" else None)
    goes_on = part not in (None, "full") or bool({"--resume", "--skip-training", "--skip_training"} & set(flags))
    if command.resumes and values["run-name"] and goes_on:
        stored = user_path(values["runs-dir"] or base.runs_dir) / values["run-name"] / "config.yaml"
        if stored.is_file():
            base = _as_asked(stored, base)
    if values["config"]:
        from weightsmith.run.options.files import read_yaml

        base = read_yaml(user_path(values["config"]), base)
    return base


def _as_asked(stored: Path, base: Any) -> Any:
    """The options of an existing run, without those that say what is to be done with its folder."""
    from weightsmith.run.options.artificial import ArtificialOptions
    from weightsmith.run.options.compress import CompressOptions
    from weightsmith.run.options.correct import RunOptions
    from weightsmith.run.options.files import read_yaml

    again: dict[str, Any] = {"resume": False, "overwrite": False, "timestamp": False, "config": None}
    if not _fits(stored, base):
        return base  # it is of another command or version, which is told later
    if isinstance(base, RunOptions | ArtificialOptions):
        again["stage"] = "full"
    if isinstance(base, CompressOptions):
        again |= {"mode": "full", "skip_training": False}
    try:
        return replace(read_yaml(stored, base), **again)
    except WeightsmithError as error:
        why = str(error).removeprefix(f"--config {stored}").lstrip(": ")
        raise WeightsmithError(
            f"{stored} is of another version of weightsmith, or was changed ({why}): give another --run-name, or correct it"
        ) from error


def _fits(stored: Path, base: Any) -> bool:
    """Whether a run's config names just the options of this command."""
    import yaml

    try:
        entries = yaml.safe_load(stored.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(entries, dict) and entries.keys() == {one.name for one in fields(base)}


def _flag(flags: list[str], name: str) -> str | None:
    """The value of one flag before the real parse; `--a-b`, `--a_b` and `--a-b=v` are the same."""
    for place, word in enumerate(flags):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == f"--{name}":
            if equals:
                return value
            return flags[place + 1] if place + 1 < len(flags) else None
    return None
