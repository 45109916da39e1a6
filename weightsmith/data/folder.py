"""Folders of image files, one folder a class, decoded when they are read."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from weightsmith.data.decode import decoded
from weightsmith.data.images import ImageSet
from weightsmith.data.npz import PARTS
from weightsmith.data.split import Source
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.files import cause_of, user_path

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""Names that count as images, in lower or upper case."""

_ENDS = 64 * 2**10
"""Bytes at the start and at the end of each file that its fingerprint covers."""


@dataclass(frozen=True)
class FolderStore:
    """Image files as pixels: each read decodes them, as `decode` says, and scales them, bilinearly, to one size.

    Attributes:
        paths: one file an image.
        size: side of the images in pixels; the proportions of a file that is not square are not kept.
        grey: give one channel instead of three.
    """

    paths: tuple[str, ...]
    size: int
    grey: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Images at these positions, (n, size, size, 3) uint8, or 1 channel when grey.

        Raises:
            WeightsmithError: naming a file that is gone, damaged or of more pixels than PIL deems safe.
        """
        out = np.empty((len(positions), self.size, self.size, 1 if self.grey else 3), dtype=np.uint8)
        for place, position in enumerate(positions):
            image = self._decode(self.paths[position])
            out[place] = np.asarray(image).reshape(out.shape[1:])
        return out

    def only(self, positions: np.ndarray) -> FolderStore:
        return replace(self, paths=tuple(self.paths[position] for position in positions))

    def _decode(self, path: str) -> Image.Image:
        try:
            if not os.path.getsize(path):
                raise ValueError("it is empty")
            image = decoded(path).convert("L" if self.grey else "RGB")
            return image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        except Exception as error:  # decoders raise whatever their format's damage leads them to
            raise WeightsmithError(f"{path} cannot be read ({cause_of(error)}): remove or replace it") from error


def folder(path: str | Path, image_size: int = 224) -> Source:
    """A folder of images: `<class>/**` (one part, "train"), or `{train,val,test}/<class>/**`.

    Classes are numbered in the order of their sorted names; a class folder may have folders of its own.

    Args:
        path: the folder.
        image_size: side in pixels that images are scaled to when they are read.

    The fingerprint covers, of each file, its path below the folder, its size, and a CRC-32 of its first and last
    64 KiB: whole files are not read, so a change in the middle of a large file that keeps its size goes unseen. It
    does not cover `image_size`: the same images at two sizes count as the same images.

    Raises:
        WeightsmithError: no images, fewer than two classes, an empty class, a class of another part that train lacks.
    """
    root = user_path(path)
    if image_size < 1:
        raise WeightsmithError(f"--image-size {image_size} is no size: give a number of pixels, 224 say")
    if not os.path.isdir(root):
        raise WeightsmithError(f"there is no folder {root}: give a folder with one folder of images for each class")
    try:
        files = {part: class_files(place) for part, place in _part_folders(root).items()}
        class_names = _check_classes(root, files)
        parts = {
            part: [(file, label) for label, name in enumerate(class_names) for file in classes.get(name, ())]
            for part, classes in files.items()
        }
        source = files_fingerprint(root, [file for rows in parts.values() for file, _ in rows])
    except OSError as error:
        raise WeightsmithError(f"{root} cannot be read ({cause_of(error)}): change its permissions") from error
    return of_files(root, parts, class_names, image_size, source)


def of_files(
    root: Path, parts: dict[str, list[tuple[str, int]]], class_names: tuple[str, ...], image_size: int, source: str
) -> Source:
    """The source of these (file, class) rows by part, whose fingerprint is `source`."""
    return Source(
        name=root.resolve().name,
        parts={
            part: ImageSet(
                store=FolderStore(tuple(file for file, _ in rows), image_size),
                positions=np.arange(len(rows), dtype=np.int64),
                all_labels=np.array([label for _, label in rows], dtype=np.int64),
                class_names=class_names,
                source=source,
                part=part,
            )
            for part, rows in parts.items()
        },
    )


def _part_folders(root: Path) -> dict[str, Path]:
    """The folder of each part; a folder without `train` is its own train part."""
    there = {part: root / part for part in PARTS if os.path.isdir(root / part)}
    if there and "train" not in there:
        raise WeightsmithError(f"{root} has a folder {next(iter(there))} and no folder train: add one beside it")
    return there or {"train": root}


def class_files(place: Path) -> dict[str, list[str]]:
    """The image files of each class folder, sorted by path."""
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not _is_hidden(entry.name))
    return {name: image_files(place / name) for name in names}


def image_files(top: Path) -> list[str]:
    """The image files below a folder, sorted by path, side files of systems left out. Raises OSError."""
    found: list[str] = []
    seen: set[str] = set()  # links are followed, and may lead in a circle
    for place, folders, names in os.walk(top, onerror=_raise, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [
            os.path.join(place, name) for name in names if name.lower().endswith(ENDINGS) and not _is_hidden(name)
        ]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """Whether it is a system's side file: .DS_Store, ._scan.png, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _raise(error: OSError) -> None:
    raise error


def _check_classes(root: Path, files: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    class_names = tuple(files["train"])
    if not any(files["train"].values()):
        raise WeightsmithError(
            f"{root} holds no images: give a folder with one folder for each class, of {', '.join(ENDINGS)} files"
        )
    for part, classes in files.items():
        for name, paths in classes.items():
            if name not in class_names:
                raise WeightsmithError(
                    f"class {name!r} of the {part} folder of {root} is not in its train folder: "
                    f"add train images of it, or remove or rename it{perhaps(name, class_names)}"
                )
            if not paths:
                raise WeightsmithError(
                    f"class {name!r} of the {part} part of {root} has no images: add some or remove the folder"
                )
    if len(class_names) < 2:
        raise WeightsmithError(f"{root} has the single class {class_names[0]!r}: add a folder for a second class")
    for part, classes in files.items():
        if not classes:
            raise WeightsmithError(f"the {part} folder of {root} holds no class folder: fill or remove it")
    return class_names


def files_fingerprint(root: Path, paths: list[str]) -> str:
    """SHA-256 (hex) over path below `root`, size and ends of these files, see `folder`."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = zlib.crc32(file.read(_ENDS))
            if size > _ENDS:
                file.seek(max(size - _ENDS, _ENDS))  # what the first read has not covered
                ends = zlib.crc32(file.read(_ENDS), ends)
        name = os.path.relpath(path, root).replace(os.sep, "/")
        digest.update(os.fsencode(name) + f"\0{size}\0{ends:08x}\n".encode())
    return digest.hexdigest()
