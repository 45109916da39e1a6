"""A safetensors file read with plain reads: header once, then any bytes of any tensor.

The safetensors library maps a file and gives whole tensors; a merge needs pieces of them, and none of the map's pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import DAMAGED, cause_of
from weightsmith.merge.storage.dtypes import KINDS, Array, Kind

_LONGEST_HEADER = 100_000_000
"""As in the safetensors library: a longer one is a damaged length, not a header."""


@dataclass(eq=False)
class SafetensorsFile:
    """Where the tensors of one file lie.

    Attributes:
        path: of the file.
        tensors: name → kind, shape, first byte in the file.
        metadata: text entries of its header.
    """

    path: Path
    tensors: Mapping[str, tuple[Kind, tuple[int, ...], int]]
    metadata: Mapping[str, str]
    _handle: FileIO | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Read the header and check that the file holds just what it says.

        Raises:
            WeightsmithError: naming the file: not readable, cut off, damaged, or with a kind of number that is not known.
        """
        try:
            with FileIO(path) as handle:
                length = path.stat().st_size
                size = int.from_bytes(handle.read(8), "little")
                if length < 8 or size > min(_LONGEST_HEADER, length - 8):
                    raise ValueError("it ends within its header")
                header = json.loads(handle.read(size).decode("utf-8"), object_pairs_hook=_once)
            if not isinstance(header, dict):
                raise ValueError("its header is no mapping")
            metadata = header.pop("__metadata__", {})
            tensors = {name: _entry(name, entry, 8 + size) for name, entry in header.items()}
            _check_cover(tensors, 8 + size, length)
            metadata = {str(key): str(value) for key, value in metadata.items()}
        except DAMAGED as error:
            raise WeightsmithError(
                f"{path} is damaged or no safetensors file ({cause_of(error)}): write it again"
            ) from error
        return cls(path, tensors, metadata)

    def read_into(self, first: int, out: Array) -> None:
        """Fill `out`, of bytes, from byte `first` of the file on."""
        try:
            if self._handle is None:
                self._handle = FileIO(self.path)
            self._handle.seek(first)
            view = out.data
            while len(view):
                got = self._handle.readinto(view)
                if not got:
                    raise OSError("it is shorter than when it was opened")
                view = view[got:]
        except OSError as error:
            raise WeightsmithError(
                f"{self.path} cannot be read any more ({cause_of(error)}): run the command again"
            ) from error

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __del__(self) -> None:  # a checkpoint that nobody needs any more is closed with its last reader
        self.close()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name comes twice: of two tensors of one name, one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} comes twice in its header")
    return found


def _entry(name: str, entry: dict[str, Any], start: int) -> tuple[Kind, tuple[int, ...], int]:
    kind = KINDS.get(entry["dtype"])
    if kind is None:
        raise ValueError(f"{name} is of the type {entry['dtype']}; {did_you_mean(str(entry['dtype']), KINDS)}")
    shape = tuple(int(extent) for extent in entry["shape"])
    first, last = (int(offset) for offset in entry["data_offsets"])
    count = 1
    for extent in shape:
        count *= extent
    if min(shape, default=0) < 0 or first < 0 or last - first != count * kind.size:
        raise ValueError(f"{name} of shape {list(shape)} does not take the {last - first} bytes that it is given")
    return kind, shape, start + first


def _check_cover(tensors: Mapping[str, tuple[Kind, tuple[int, ...], int]], start: int, length: int) -> None:
    """The tensors follow each other without gap or overlap up to the file's end."""
    at = start
    for name, (kind, shape, first) in sorted(tensors.items(), key=lambda item: (item[1][2], item[0])):
        if first != at and 0 not in shape:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        count = kind.size
        for extent in shape:
            count *= extent
        at = max(at, first + count)
    if at != length:
        raise ValueError(f"it has {length} bytes where its header says {at}")
