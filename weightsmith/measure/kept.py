"""What is kept of a measurement, to be taken in place of measuring again: files that know what they are, and tell damage.

A file that was renamed, swapped with another of its kind, cut off or changed is not taken for what it was: its name, which
follows from all that was measured, and a checksum of the content are in it.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED, as_bytes, cause_of, read_tensors, write_json, write_tensors

_JSON = "weightsmith-kept-1"
_log = logging.getLogger(__name__)


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, wanted: bool = False) -> None:
    """Write tensors that `kept_tensors` reads.

    Args:
        header: JSON values, "format" among them.
        wanted: a place that cannot be written is an error; else nothing is kept there, and the log says so.
    """
    stamped = {**header, "name": path.name, "sum": _sum(tensors)}
    with _where_possible(path, wanted):
        write_tensors(path, {name: one.contiguous() for name, one in tensors.items()}, stamped)


def kept_tensors(path: Path, wanted: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header as it was given, but for its format, tensors).

    Raises:
        WeightsmithError: a file of another format than `wanted`, or one that is damaged or was kept under another name.
    """
    header, tensors = read_tensors(path, wanted)
    name, sum_ = header.pop("name", None), header.pop("sum", None)
    if name != path.name:
        raise WeightsmithError(f"{path} was kept as {name}: remove it")
    if sum_ != _sum(tensors):
        raise WeightsmithError(f"{path} has changed since it was written: remove it")
    return {key: value for key, value in header.items() if key != "format"}, tensors


def keep_json(path: Path, value: Any) -> None:
    """Write a JSON value that `kept_json` reads; where nothing can be written nothing is kept, and the log says so."""
    with _where_possible(path, False):
        write_json(path, {"format": _JSON, "name": path.name, "sum": _json_sum(value), "value": value})


def kept_json(path: Path) -> Any:
    """The value; None where there is none, or not this one, which the log tells."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict) or entries.get("format") != _JSON:
            raise ValueError(f"it is no {_JSON} file")
        if entries["name"] != path.name:
            raise ValueError(f"it was kept as {entries['name']}")
        if entries["sum"] != _json_sum(entries["value"]):
            raise ValueError("it has changed since it was written")
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        _log.warning("%s is damaged and measured again: %s", path, cause_of(error))
        return None
    return entries["value"]


@contextmanager
def _where_possible(path: Path, wanted: bool) -> Iterator[None]:
    """Where a cache cannot be written, what was measured holds all the same."""
    try:
        yield
    except WeightsmithError as error:
        cause = error.__cause__
        if wanted or not (isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.EPERM)):
            raise
        _tell_once(path.parent)


@cache
def _tell_once(folder: Path) -> None:
    _log.warning(
        "%s cannot be written, so what is measured is not kept for another time: change its rights, or give --cache-dir",
        folder,
    )


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """XXH3-128 of names, types, shapes and bytes."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(as_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _json_sum(value: Any) -> str:
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()
