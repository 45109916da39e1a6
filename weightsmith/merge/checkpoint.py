"""`Checkpoint`: named tensors wherever they lie, read one at a time or piece by piece, and never as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import CHUNK
from weightsmith.merge.storage.dtypes import Array, Kind
from weightsmith.merge.storage.sources import Stored, opened

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from weightsmith.delta import HasModule


class Checkpoint:
    """A model's weights as they lie in a file, in a folder or in memory.

    Nothing is read before it is asked for. Files are read rather than mapped, since pages of a map count as this process's
    memory for as long as it is open.

    Attributes:
        name: what the user called it.
        metadata: of the safetensors file, the first shard's where there are several; empty elsewhere.
        config: entries of `config.json` beside the weights, or of the network's config; empty where there is none.
        folder: the Hugging Face folder that it came from, None for a bare file or a network in memory.
    """

    def __init__(
        self, name: str, stored: Mapping[str, Stored], metadata: Mapping[str, str], config: Mapping[str, Any],
        folder: Path | None, files: tuple[Path, ...],
    ) -> None:  # fmt: skip
        self.name = name
        self.metadata = MappingProxyType(dict(metadata))
        self.config = MappingProxyType(dict(config))
        self.folder = folder
        self._stored = {key: stored[key] for key in sorted(stored)}
        self._files = files

    @classmethod
    def open(cls, source: str | Path | nn.Module | HasModule | Mapping[str, Tensor] | Checkpoint) -> Checkpoint:
        """The checkpoint of a source.

        Args:
            source: a `.safetensors` file; a folder with `model.safetensors`, or with an index and its shards (a Hugging Face
                folder, or a run folder's); a state dict that `torch.save` wrote (`.pt`, `.pth`, `.bin`), from which tensors
                alone are unpickled; a network in memory, or its state dict.

        Raises:
            WeightsmithError: naming the file and the remedy: nothing there, a file that is damaged or cut off, a shard that is
                missing, an index that names tensors which its shards do not hold, a pickle that holds more than tensors.
        """
        if isinstance(source, Checkpoint):
            return source
        found = opened(source)
        return cls(found.name, found.stored, found.metadata, found.config, found.folder, found.files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files; a later read opens them again."""
        for stored in self._stored.values():
            stored.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, sorted."""
        return tuple(self._stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(stored.nbytes for stored in self._stored.values())

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors; none for a network in memory."""
        return self._files

    def kind(self, name: str) -> Kind:
        """The kind of numbers that a tensor holds, without torch."""
        return self._named(name).kind

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor."""
        return self._named(name).kind.torch

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._named(name).shape

    def tied(self, name: str) -> str:
        """The name under which the same memory is first known: another one than `name` where two modules share a tensor."""
        return self._named(name).tied or name

    def read(self, name: str) -> Tensor:
        """A fresh tensor on the CPU.

        Raises:
            WeightsmithError: no such tensor, or a file that cannot be read any more.
        """
        import torch  # heavy, and a merge does without

        stored = self._named(name)
        tensor = torch.empty(stored.shape, dtype=stored.kind.torch)
        if stored.nbytes:
            stored.read_into(0, tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor

    def bits(self, name: str, first: int, out: Array) -> Array:
        """A piece of a tensor, flat, as it is stored.

        Args:
            first: index of the piece's first element.
            out: one-dimensional, of the type `kind(name).layout`; it is filled.
        """
        stored = self._named(name)
        if out.nbytes:
            stored.read_into(first * stored.kind.size, out.view(np.uint8))
        return out

    def whole(self, name: str) -> Array:
        """A tensor's numbers in the type that they are merged in, in its shape."""
        stored = self._named(name)
        bits = self.bits(name, 0, np.empty(stored.elements, stored.kind.layout))
        return (stored.kind.widened(bits) if stored.kind.floating else bits).reshape(stored.shape)

    def sha256(self) -> str:
        """SHA-256 over names, types, shapes and bytes, as `weightsmith.delta.weights_hash` gives of a network."""
        digest = hashlib.sha256()
        for name, stored in self._stored.items():
            digest.update(told(name, stored.kind, stored.shape))
            for piece in self._pieces(stored):
                digest.update(piece.data)
        return digest.hexdigest()

    def digest(self, name: str) -> str:
        """XXH3-128 of a tensor's bytes: finds what went wrong by accident at the speed of memory, not what somebody forged."""
        digest = xxhash.xxh3_128()
        for piece in self._pieces(self._named(name)):
            digest.update(piece.data)
        return digest.hexdigest()

    def fingerprint(self, digests: Mapping[str, str] | None = None) -> str:
        """SHA-256 over names, types, shapes and `digest` of every tensor, in no more time than reading takes.

        Args:
            digests: of the tensors for which they are known already.
        """
        known = digests or {}
        digest = hashlib.sha256()
        for name, stored in self._stored.items():
            digest.update(told(name, stored.kind, stored.shape) + (known.get(name) or self.digest(name)).encode())
        return digest.hexdigest()

    def _pieces(self, stored: Stored) -> Iterator[Array]:
        buffer = np.empty(min(CHUNK, stored.nbytes), np.uint8)
        for first in range(0, stored.nbytes, CHUNK):
            piece = buffer[: min(CHUNK, stored.nbytes - first)]
            stored.read_into(first, piece)
            yield piece

    def _named(self, name: str) -> Stored:
        if name not in self._stored:
            raise WeightsmithError(f"{self.name} holds no tensor {name!r}: {_near(name, self.names)}")
        return self._stored[name]


def told(name: str, kind: Kind, shape: tuple[int, ...]) -> bytes:
    """What goes into a hash before a tensor's bytes."""
    return f"{name}:torch.{kind.torch_name}:{tuple(shape)};".encode()


def _near(name: str, names: tuple[str, ...]) -> str:
    return did_you_mean(name, names) if len(names) <= 12 else did_you_mean(name, names).partition(" known:")[0]
