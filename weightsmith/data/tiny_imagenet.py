"""Tiny-ImageNet as its archive unpacks: classes by WordNet id, validation images named in a table or sorted by class."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from weightsmith.data.decode import bombs_refused
from weightsmith.data.folder import class_files, files_fingerprint, image_files, of_files
from weightsmith.data.split import Source
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.files import cause_of, user_path

_CLASSES, _WORDS, _TABLE = "wnids.txt", "words.txt", "val_annotations.txt"
_FIELDS = 6
"""Of a line of the table: name, class, and the four sides of a box, which nothing here reads."""

Rows = list[tuple[str, int]]
"""(file, class) of each image of a part."""


def is_tiny_imagenet(path: Path) -> bool:
    """Whether a folder is laid out as Tiny-ImageNet, complete or not."""
    return os.path.isdir(path / "train") and (os.path.isfile(path / _CLASSES) or os.path.isfile(path / "val" / _TABLE))


def inside(path: Path) -> Path | None:
    """The Tiny-ImageNet folder that a folder holds beside no other, as unpacking leaves it."""
    try:
        below = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()]
    except OSError:
        return None
    return below[0] if len(below) == 1 and is_tiny_imagenet(below[0]) else None


def tiny_imagenet(path: str | Path, image_size: int = 224) -> Source:
    """Tiny-ImageNet's folder: `wnids.txt`, `words.txt`, `train/<wnid>/images/*.JPEG`, and `val/` in one of two forms.

    `val/images/*.JPEG` with their classes in `val/val_annotations.txt`, as published; or `val/<wnid>/**` or
    `val/images/<wnid>/**`, as many sort them, and then the table counts no more. Parts are "train" and "val", where there
    is a `val`; images of `test` have no classes and are left alone. Classes are numbered in the order of `wnids.txt` and
    named by the first name that `words.txt` gives them, with the wnid behind it where two would be called alike; by the
    wnid where it gives none.

    Images are decoded when they are read and have the size of the first train image (64 px as published), whatever the
    model's: scaling up is left to the model's preprocessing.

    The fingerprint covers the files as that of `folder` does, and the class of each.

    Args:
        path: the folder.
        image_size: side in pixels that larger images are scaled down to.

    Raises:
        WeightsmithError: a file of the layout is missing or damaged, a class without images, classes or images of one
            list that another lacks.
    """
    root = user_path(path)
    if image_size < 1:
        raise WeightsmithError(f"--image-size {image_size} is no size: give a number of pixels, 64 say")
    try:
        wnids = _wnids(root)
        parts = {"train": _sorted_rows(root / "train", wnids, whole=True)}
        if os.path.isdir(root / "val"):
            parts["val"] = _val_rows(root, wnids)
        digest = hashlib.sha256(files_fingerprint(root, [file for rows in parts.values() for file, _ in rows]).encode())
        for rows in parts.values():
            digest.update(np.array([label for _, label in rows], dtype="<i8").tobytes())
        names = _names(root, wnids)
    except OSError as error:
        raise WeightsmithError(f"{root} cannot be read ({cause_of(error)}): change its permissions") from error
    return of_files(root, parts, names, min(_side(parts["train"][0][0]), image_size), digest.hexdigest())


def _wnids(root: Path) -> tuple[str, ...]:
    file = root / _CLASSES
    if not os.path.isfile(file):
        raise WeightsmithError(f"{root} has no {_CLASSES}, the list of its classes: unpack the archive again")
    wnids = [line.strip() for line in _lines(file) if line.strip()]
    if not wnids:
        raise WeightsmithError(f"{file} is empty: unpack the archive again, or write one wnid a line into it")
    twice = [wnid for wnid, times in Counter(wnids).items() if times > 1]
    if twice:
        raise WeightsmithError(f"{file} names the class {twice[0]} more than once: remove what is too much")
    if len(wnids) == 1:
        raise WeightsmithError(f"{file} names the single class {wnids[0]}: add a second one")
    return tuple(wnids)


def _names(root: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """One name a class, all different: a model's config finds classes by name."""
    words: dict[str, str] = {}
    if os.path.isfile(root / _WORDS):
        for line in _lines(root / _WORDS):
            wnid, _, said = line.partition("\t")
            words[wnid.strip()] = said.split(",")[0].strip()
    names = [words.get(wnid) or wnid for wnid in wnids]
    times = Counter(names)
    return tuple(f"{name} ({wnid})" if times[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))


def _sorted_rows(place: Path, wnids: tuple[str, ...], whole: bool = False) -> Rows:
    """The images of a part that has a folder a class, and is to have one of every class where it is `whole`."""
    found = class_files(place)
    if not found.get("images"):
        found.pop("images", None)  # what sorting the validation images leaves behind
    strange = [name for name in found if name not in wnids]
    if strange:
        raise WeightsmithError(
            f"{place} has a folder {strange[0]} and {_CLASSES} no such class: add it there or remove the folder"
            f"{perhaps(strange[0], wnids)}"
        )
    missing = [wnid for wnid in wnids if wnid not in found]
    if missing and whole:
        raise WeightsmithError(
            f"{place} lacks {len(missing)} of the {len(wnids)} classes of {_CLASSES}, {missing[0]} the first: "
            f"unpack the archive again, or take them out of {_CLASSES}"
        )
    empty = [wnid for wnid in wnids if wnid in found and not found[wnid]]
    if empty:
        raise WeightsmithError(
            f"the class folder {place / empty[0]} has no images: add some, or remove it"
            + (f" and take it out of {_CLASSES}" if whole else "")
        )
    return [(file, label) for label, wnid in enumerate(wnids) for file in found.get(wnid, ())]


def _val_rows(root: Path, wnids: tuple[str, ...]) -> Rows:
    place = root / "val"
    below = image_files(place / "images") if os.path.isdir(place / "images") else []
    together = [file for file in below if Path(file).parent == place / "images"]
    homes = [home for home in (place, place / "images") if any(os.path.isdir(home / wnid) for wnid in wnids)]
    if homes and together:
        raise WeightsmithError(
            f"{homes[0]} has class folders, and {together[0]} is outside of one ({len(together)} in all): sort all or none"
        )
    if homes or not (together or os.path.isfile(place / _TABLE)):
        rows = _sorted_rows(homes[0] if homes else place, wnids)
        if not rows:
            raise WeightsmithError(f"{place} holds no images: unpack the archive again, or remove the folder")
        return rows
    labels = _annotations(place / _TABLE, wnids)
    there = {os.path.relpath(file, place / "images").replace(os.sep, "/"): file for file in together}
    gone, unnamed = [name for name in labels if name not in there], [name for name in there if name not in labels]
    if gone:
        raise WeightsmithError(
            f"{place / _TABLE} names {gone[0]}, which is not in {place / 'images'} ({len(gone)} such lines in all): unpack "
            "the archive again, or remove what is too much"
        )
    if unnamed:
        raise WeightsmithError(
            f"{place / _TABLE} does not name {unnamed[0]} of {place / 'images'} ({len(unnamed)} such images in all): unpack "
            "the archive again, or remove what is too much"
        )
    return [(there[name], label) for name, label in labels.items()]


def _annotations(file: Path, wnids: tuple[str, ...]) -> dict[str, int]:
    """The class of each validation image by file name, in the order of the table."""
    if not os.path.isfile(file):
        raise WeightsmithError(f"{file} is missing, which says what validation images show: unpack the archive again")
    number_of = {wnid: number for number, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != _FIELDS or not all(field.strip() for field in fields):
            raise WeightsmithError(
                f"line {number} of {file} is cut off, {line!r}: unpack the archive again, or complete it to name, class and "
                "the four sides of a box, with tabs between them"
            )
        name, wnid = fields[0].strip(), fields[1].strip()
        if wnid not in number_of:
            raise WeightsmithError(
                f"line {number} of {file} gives {name} the class {wnid}, which is not in {_CLASSES}: add it there, or "
                f"correct the line{perhaps(wnid, number_of)}"
            )
        if name in labels:
            raise WeightsmithError(f"line {number} of {file} names {name} a second time: remove one of the two")
        labels[name] = number_of[wnid]
    if not labels:
        raise WeightsmithError(f"{file} is empty: unpack the archive again")
    return labels


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise WeightsmithError(f"{file} is no text ({cause_of(error)}): unpack the archive again") from error


def _side(path: str) -> int:
    """The longer side of an image in pixels, from its header."""
    try:
        with bombs_refused(), Image.open(path) as image:
            return max(image.size)
    except Exception as error:  # decoders raise whatever their format's damage leads them to
        raise WeightsmithError(f"{path} cannot be read ({cause_of(error)}): remove or replace it") from error
