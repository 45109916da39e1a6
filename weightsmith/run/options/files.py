"""Options to and from YAML."""

from __future__ import annotations

import dataclasses
import keyword
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from weightsmith.errors import WeightsmithError, did_you_mean, near_path
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.merge import MergeOptions

Options = TypeVar("Options", bound=FolderOptions | MergeOptions)


def read_yaml(path: Path, base: Options) -> Options:
    """The options in a YAML file over `base`.

    Raises:
        WeightsmithError: naming the file and the entry: not readable, no mapping, an unknown name, a value of another type.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsmithError(
            f"--config {path} cannot be read ({reason}): give a YAML file of options{near_path(path)}"
        ) from error
    if not isinstance(entries, dict):
        raise WeightsmithError(
            f"--config {path} must hold a mapping of options to values: write lines such as `epochs: 10`"
        )
    hints = get_type_hints(type(base))
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name = str(key).replace("-", "_")
        name += "_" if keyword.iskeyword(name) else ""  # lambda
        if name not in hints:
            raise WeightsmithError(f"--config {path} names the unknown option {key!r}: {did_you_mean(name, hints)}")
        values[name] = _typed(value, hints[name], f"--config {path}: {key}")
    return dataclasses.replace(base, **values)


def to_yaml(options: FolderOptions) -> str:
    """The options as YAML, that `read_yaml` reads back."""
    entries = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value if it fits the type of its field, converted where YAML has no such type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise WeightsmithError(f"{where} is {value!r}: {did_you_mean(str(value), [str(i) for i in inner])}")
        return value
    if origin is tuple:
        entries = value if isinstance(value, list) else [value]
        return tuple(_typed(entry, inner[0], where) for entry in entries)
    if inner:  # X | None
        options = [option for option in inner if option is not type(None)]
        return None if value is None else _typed(value, options[0], where)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise WeightsmithError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
