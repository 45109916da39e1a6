"""Reading .npz files in the layout of MedMNIST, in memory or, where they are large, through files unpacked once."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from weightsmith.data.download import fetch_command
from weightsmith.errors import WeightsmithError, near_path, perhaps
from weightsmith.files import CHUNK, cause_of, disk_is_full, remove_abandoned, replacing, write_text
from weightsmith.progress import progress

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
"""The parts that a file may hold, train being the one that it must."""

_ABANDONED_AFTER = 24 * 3600
"""Seconds without a write after which a temporary file belongs to a process that was killed."""

_EXPECTED = "train_images and train_labels, and optionally val_images, val_labels, test_images, test_labels"


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) over name, CRC-32 and size of every member, sorted.

    It identifies the content, gigabytes of it, by what the file says of itself: the same arrays saved again have the
    same fingerprint, whatever the order or the compression.
    """
    with _opened(path) as archive:
        return _fingerprint(archive)


def open_npz(
    path: Path, cache_dir: Path, memory_limit: int = 512 * 2**20, *, blank: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of each part that the file has, checked.

    Args:
        path: the file; members other than those of the layout are left alone.
        cache_dir: images of more than `memory_limit` bytes are unpacked to `npz/<fingerprint>/` of this folder, once.
        memory_limit: bytes up to which the images of all parts are read into memory.
        blank: images of the right shapes that are black, of which nothing is read or unpacked: enough to plan with.

    Returns:
        `<part>_images`, (N, height, width) or (N, height, width, channels) uint8 with 1 or 3 channels, in memory or
        read-only memory maps; `<part>_labels`, (N,) int64 in memory.

    Raises:
        WeightsmithError: a file that is missing, damaged, of another layout, or no room to unpack it.
    """
    with _opened(path) as archive:
        members = _members(path, archive)
        shapes: dict[str, tuple[int, ...]] = {}
        for key, member in members.items():
            with _damage_named(path, member.filename):
                shape, dtype = _header(archive, member)
            _check_array(path, key, shape, dtype)
            shapes[key] = shape
        _check_shapes(path, shapes)
        images = {key: member for key, member in members.items() if key.endswith("_images")}
        arrays: dict[str, np.ndarray]
        if blank:
            arrays = {key: np.broadcast_to(np.zeros((), np.uint8), shapes[key]) for key in images}
        elif sum(member.file_size for member in images.values()) > memory_limit:
            arrays = _mapped(path, archive, images, cache_dir / "npz" / _fingerprint(archive))
        else:
            arrays = {key: _read(path, archive, member) for key, member in images.items()}
        for key in members.keys() - images.keys():
            arrays[key] = _read(path, archive, members[key]).astype(np.int64).reshape(-1)
    return {key: arrays[key] for key in members}


# What is in the file, before anything large is read


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip archive, or one sentence on why it is none."""
    if not os.path.exists(path):
        command = fetch_command(path)
        fetch = f"{command} fetches it, or " if command else ""
        raise WeightsmithError(
            f"there is no file {path}: {fetch}put your copy there or give its place (--data-path){near_path(path)}"
        )
    if os.path.isdir(path):
        raise WeightsmithError(f"{path} is a folder, not an .npz file: give the path of the file")
    with _damage_named(path):
        with open(path, "rb") as file:
            start = file.read(6)
        if start[:2] != b"PK":
            kind = "is empty" if not start else "is no .npz file"
            kind = "is a single array" if start == b"\x93NUMPY" else kind
            raise WeightsmithError(f"{path} {kind}: give a file written by numpy.savez with {_EXPECTED}")
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


@contextmanager
def _damage_named(path: Path, member: str = "") -> Iterator[None]:
    """Turn what reading raises into one sentence on the file."""
    try:
        yield
    except WeightsmithError:
        raise
    except PermissionError as error:
        raise WeightsmithError(f"{path} may not be read: change its permissions or give another file") from error
    except Exception as error:  # damaged bytes make zipfile, zlib and numpy raise a dozen kinds of exception
        where = f" in {member}" if member else ""
        command = fetch_command(path)
        again = f"fetch it again with {command}" if command else "fetch or write it again"
        raise WeightsmithError(
            f"{path} is cut off or damaged{where} ({cause_of(error)}): remove it and {again}"
        ) from error


def _fingerprint(archive: zipfile.ZipFile) -> str:
    rows = sorted((member.filename, member.CRC, member.file_size) for member in archive.infolist())
    text = "".join(f"{name}\0{crc:08x}\0{size}\n" for name, crc, size in rows)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of the layout by key, in the order train, val, test."""
    found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    pairs = [(f"{part}_images", f"{part}_labels") for part in PARTS]
    needed = [pair for pair in pairs if pair == pairs[0] or any(key in found for key in pair)]
    missing = [key for pair in needed for key in pair if key not in found]
    if missing:
        there = ", ".join(sorted(found)) or "none"
        raise WeightsmithError(
            f"{path} lacks {', '.join(missing)} (arrays there: {there}): write a file with {_EXPECTED}"
            f"{perhaps(missing[0], sorted(found.keys() - set(sum(needed, ()))))}"
        )
    return {key: found[key] for pair in needed for key in pair}


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a member, read without its data. Raises ValueError where they do not fit its size."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"array format {version} is unknown")
        start = file.tell()
    if not dtype.hasobject and (
        min(shape, default=0) < 0 or start + math.prod(shape) * dtype.itemsize != member.file_size
    ):
        raise ValueError(f"{member.file_size} bytes do not hold an array of shape {shape}")
    return shape, dtype


def _check_array(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise WeightsmithError(
            f"{key} of {path} holds pickled Python objects, which are never loaded because they can run code: "
            "save it as an array of integers"
        )
    if key.endswith("_labels"):
        if not np.issubdtype(dtype, np.integer):
            raise WeightsmithError(f"{key} of {path} is {dtype}: save class numbers as integers")
        if len(shape) == 2 and shape[1] > 1:
            raise WeightsmithError(
                f"{key} of {path} has {shape[1]} columns, and sets of several labels an image are not supported: "
                "give a set with one label an image"
            )
        if len(shape) not in (1, 2) or shape[1:] == (0,):
            raise WeightsmithError(f"{key} of {path} has shape {shape}: save labels as (N,) or (N, 1)")
        return
    if dtype != np.uint8:
        raise WeightsmithError(f"{key} of {path} is {dtype}: save images as uint8, 0 to 255")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or min(shape[1:]) < 1:
        raise WeightsmithError(
            f"{key} of {path} has shape {shape}: save images as (N, height, width) or (N, height, width, 1 or 3)"
        )


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    for part in PARTS:
        images, labels = shapes.get(f"{part}_images"), shapes.get(f"{part}_labels")
        if images is None or labels is None:
            continue
        if images[0] != labels[0]:
            raise WeightsmithError(
                f"the {part} part of {path} has {images[0]} images and {labels[0]} labels: save one label for each"
            )
        if images[1:] != shapes["train_images"][1:]:
            raise WeightsmithError(
                f"{part} images of {path} are {images[1:]} and train images {shapes['train_images'][1:]}: "
                "save all parts at one size and number of channels"
            )
    if shapes["train_images"][0] == 0:
        raise WeightsmithError(f"the train part of {path} holds no image: give a file that has some")


# The data itself


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with _damage_named(path, member.filename), archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the CRC is compared where the end is met
        return array


def _mapped(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path
) -> dict[str, np.ndarray]:
    """Memory maps of these members, unpacked to `folder` unless an earlier call has done it."""
    targets = {key: folder / f"{key}.npy" for key in members}
    missing = {key: member for key, member in members.items() if not _is_whole(targets[key], member)}
    if missing:
        try:
            _unpack(path, archive, missing, targets, folder)
        except OSError as error:
            remedy = "free space there" if disk_is_full(error) else "make it writable"
            raise WeightsmithError(
                f"{path} cannot be unpacked into {folder} ({cause_of(error)}): {remedy}, "
                "or name another cache folder with --cache-dir"
            ) from error
    arrays: dict[str, np.ndarray] = {}
    for key, target in targets.items():
        try:
            arrays[key] = np.load(target, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # as above
            raise WeightsmithError(
                f"{target}, unpacked from {path}, cannot be read ({cause_of(error)}): remove it and start again"
            ) from error
    return arrays


def _unpack(
    path: Path,
    archive: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    targets: dict[str, Path],
    folder: Path,
) -> None:
    """Stream the members into the cache. Raises OSError for the disk, `WeightsmithError` for the file."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    needed, free = sum(member.file_size for member in members.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise WeightsmithError(
            f"unpacking {path} needs {needed / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free: "
            "free space there or name another cache folder with --cache-dir"
        )
    logger.info("unpacking %s into %s, which happens once", path, folder)
    with progress(f"unpack {path.name}", needed, of_bytes=True) as advance:
        for key, member in members.items():
            with replacing(targets[key]) as temporary, open(temporary, "wb") as out:
                for chunk in _chunks(path, archive, member):
                    out.write(chunk)
                    advance(len(chunk))
            _leave_mark(targets[key], member)


def _chunks(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member; what goes wrong here is the file's doing, not the cache folder's."""
    with _damage_named(path, member.filename), archive.open(member) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _is_whole(target: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file is what the member was unpacked to; its bytes are read where nobody has looked since it was written."""
    if not target.is_file():
        return False
    if _mark(target).is_file() and _read_mark(target) == _mark_of(target, member):
        return True
    crc = 0
    with open(target, "rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    if crc != member.CRC:
        logger.warning("%s is damaged and unpacked again", target)
        return False
    _leave_mark(target, member)
    return True


def _mark(target: Path) -> Path:
    return target.with_suffix(".checked")


def _mark_of(target: Path, member: zipfile.ZipInfo) -> str:
    stands = target.stat()
    return f"{member.CRC:08x} {stands.st_size} {stands.st_mtime_ns}\n"


def _read_mark(target: Path) -> str:
    return _mark(target).read_text(encoding="utf-8", errors="replace")


def _leave_mark(target: Path, member: zipfile.ZipInfo) -> None:
    """Note that a file is whole; where that cannot be written it is read again another time."""
    with suppress(WeightsmithError):
        write_text(_mark(target), _mark_of(target, member))
