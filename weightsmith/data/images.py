"""A labelled set of images as a value: where the pixels lie, which of them are meant, and what they show."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from weightsmith.data import seal
from weightsmith.errors import WeightsmithError


class PixelStore(Protocol):
    """Where pixels lie: an array in memory, a memory-mapped file, a folder of image files."""

    def __len__(self) -> int: ...

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Images at these positions, (n, height, width, channels) uint8, channels 1 or 3."""
        ...

    def only(self, positions: np.ndarray) -> PixelStore:
        """A store of the images at these positions, in that order: what is sent to another process.

        A file stays where it is, and the other process reads of it what it needs.
        """
        ...


@dataclass(frozen=True)
class ArrayStore:
    """Pixels of an array or memory map, (N, height, width) or (N, height, width, channels), uint8."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def read(self, positions: np.ndarray) -> np.ndarray:
        # Reading a memory map in file order touches each page once.
        order = np.argsort(positions, kind="stable")
        taken = np.asarray(self.array[positions[order]])
        out = np.empty_like(taken)
        out[order] = taken
        return out[..., None] if out.ndim == 3 else out

    def only(self, positions: np.ndarray) -> PixelStore:
        mapped = _whole_map(self.array)
        if mapped is not None:
            return _FileStore(str(mapped.filename), mapped.dtype.str, mapped.offset, mapped.shape, positions)
        return ArrayStore(self.array[positions])


def _whole_map(array: np.ndarray) -> Any:
    """The memory map that an array is, where its own offset and shape say where it lies."""
    base: object = array.base
    return array if isinstance(array, np.memmap) and isinstance(base, mmap.mmap) and array.flags.c_contiguous else None


@dataclass(frozen=True)
class _FileStore:
    """Some of the pixels of an array in a file, mapped where they are read.

    Attributes:
        path, dtype, offset, shape: of the whole array, in C order.
        positions: (n,) which of its images these are.
    """

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: np.ndarray) -> np.ndarray:
        try:
            array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise WeightsmithError(
                f"{self.path} cannot be read ({error}): the processes of a job need one file system, for data and for the "
                "cache (--cache-dir)"
            ) from error
        return ArrayStore(array).read(self.positions[positions])

    def only(self, positions: np.ndarray) -> PixelStore:
        return replace(self, positions=self.positions[positions])


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: a value that other values are cut from (`subset`), never changed.

    Attributes:
        store: where the pixels lie.
        positions: (n,) which of the store's images these are.
        all_labels: (N,) class of each image of the store.
        class_names: one name a class.
        source: fingerprint of the content (hex); with part and position it identifies an image.
        part: name of the part of the source, "train" say.
        sealed: held out; reading raises `HeldOutError` outside an evaluation.
    """

    store: PixelStore
    positions: np.ndarray
    all_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    part: str
    sealed: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour); a property of the data set, so a sealed part may be asked."""
        return int(self.store.read(self.positions[:1]).shape[-1])

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64 class of each image. Raises `HeldOutError` when sealed."""
        self.check_open()
        labels: np.ndarray = self.all_labels[self.positions]
        return labels

    def pixels(self, which: Sequence[int] | np.ndarray | slice | None = None) -> torch.Tensor:
        """Images as (n, channels, height, width) uint8; `which` counts within this set. Raises `HeldOutError`."""
        self.check_open()
        positions = self.positions if which is None else self.positions[which]
        images = self.store.read(np.asarray(positions, dtype=np.int64))
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (b, channels, height, width) uint8 and labels (b,) int64, in order."""
        labels = torch.from_numpy(self.labels)
        for start in range(0, len(self), size):
            piece = slice(start, start + size)
            yield self.pixels(piece), labels[piece]

    def subset(self, which: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at these places of this set, in the given order."""
        return replace(self, positions=self.positions[np.asarray(which, dtype=np.int64)])

    def alone(self) -> ImageSet:
        """The same images without the rest of their source, and without a seal: what is sent to another process.

        Raises:
            HeldOutError: the set is sealed.
        """
        self.check_open()
        places = np.arange(len(self))
        store, labels = self.store.only(self.positions), self.all_labels[self.positions]
        return replace(self, store=store, positions=places, all_labels=labels, sealed=False)

    def seal(self) -> ImageSet:
        """The same images, readable only inside an evaluation."""
        return replace(self, sealed=True)

    def names(self) -> list[str]:
        """One stable identifier an image, `part/position`."""
        return [f"{self.part}/{position}" for position in self.positions]

    def digest(self) -> str:
        """SHA-256 over source, part and the sorted positions: equal sets of images have equal digests."""
        text = f"{self.source}:{self.part}:".encode()
        return hashlib.sha256(text + np.sort(self.positions).astype("<i8").tobytes()).hexdigest()

    def overlaps(self, other: ImageSet) -> int:
        """How many images both sets hold."""
        if (self.source, self.part) != (other.source, other.part):
            return 0
        return len(np.intersect1d(self.positions, other.positions))

    def check_open(self) -> None:
        """Raise `HeldOutError` when the set is sealed and no evaluation is under way."""
        if self.sealed:
            seal.check_open(f"the {self.part} set of {len(self)} images")
