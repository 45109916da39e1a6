"""A Hugging Face folder of safetensors shards, written piece by piece and then read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import xxhash

from weightsmith.errors import WeightsmithError
from weightsmith.merge.storage.dtypes import Array, Kind

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


def shard_size(text: str) -> int:
    """Bytes from "5GB", "300MB", "2GiB" or a number, as in transformers.

    Raises:
        WeightsmithError: anything else.
    """
    number = text.strip().rstrip("BbGgIiKkMm").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise WeightsmithError(f"--max-shard-size {text} is no size: give 5GB, 300MB or a number of bytes")
    return size


@dataclass(frozen=True)
class Tensor:
    """What is written: its name, kind and shape."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        count = self.kind.size
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class Shard:
    """One file: its name, and its tensors in the order in which they lie."""

    file: str
    tensors: tuple[Tensor, ...]

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The file up to its first tensor."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        at = 0
        for tensor in self.tensors:
            place = [at, at + tensor.nbytes]
            entries[tensor.name] = {"dtype": tensor.kind.name, "shape": list(tensor.shape), "data_offsets": place}
            at = place[1]
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tensors begin where their numbers are aligned
        return len(text).to_bytes(8, "little") + text


def shards(tensors: Sequence[Tensor], limit: int | None) -> list[Shard]:
    """The files that tensors go to, in the order of their names: none larger than `limit` but for a single larger tensor.

    Within a file the widest numbers come first, so that each tensor is aligned.
    """
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if groups[-1] and limit is not None and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    n = len(groups)
    names = ["model.safetensors"] if n == 1 else [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    ordered = [sorted(group, key=lambda tensor: (-tensor.kind.size, tensor.name)) for group in groups]
    return [Shard(name, tuple(group)) for name, group in zip(names, ordered, strict=True)]


def write_shard(
    folder: Path, shard: Shard, room_for: Mapping[str, str], pieces: Iterator[tuple[str, Array]]
) -> dict[str, str]:
    """Write a shard's tensors from their pieces, in the shard's order, with a header for metadata as long as `room_for`.

    Returns:
        XXH3-128 of every tensor's bytes, by name.

    Raises:
        WeightsmithError: pieces that are more or fewer bytes than a tensor has.
    """
    digests = {tensor.name: xxhash.xxh3_128() for tensor in shard.tensors}
    written = dict.fromkeys(digests, 0)
    with FileIO(folder / shard.file, "w") as handle:
        _write(handle, shard.header(room_for))
        for name, bits in pieces:
            data = bits.view("u1").data
            _write(handle, data)
            digests[name].update(data)
            written[name] += data.nbytes
    for tensor in shard.tensors:
        if written[tensor.name] != tensor.nbytes:
            raise WeightsmithError(f"{tensor.name} came to {written[tensor.name]} bytes where it has {tensor.nbytes}")
    return {name: digest.hexdigest() for name, digest in digests.items()}


def write_header(folder: Path, shard: Shard, metadata: Mapping[str, str]) -> None:
    """Write the header again, with metadata that is as long as that for which room was left."""
    header = shard.header(metadata)
    with FileIO(folder / shard.file, "r+") as handle:
        if 8 + int.from_bytes(handle.read(8), "little") != len(header):
            raise ValueError("there is no room for this header")
        handle.seek(0)
        _write(handle, header)


def write_index(folder: Path, files: Sequence[Shard]) -> None:
    """`model.safetensors.index.json`, where there are several shards."""
    if len(files) > 1:
        total = sum(tensor.nbytes for shard in files for tensor in shard.tensors)
        weight_map = {tensor.name: shard.file for shard in files for tensor in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(handle: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[handle.write(view) :]
