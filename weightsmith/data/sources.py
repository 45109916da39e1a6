"""Where images come from: the digits that ship with scikit-learn, MedMNIST files, folders of images, Tiny-ImageNet's too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from weightsmith.data.download import DEFAULT_FOLDER, KnownSet, fetch_command, known_file
from weightsmith.data.folder import folder
from weightsmith.data.images import ImageSet
from weightsmith.data.npz import PARTS, fingerprint, open_npz
from weightsmith.data.parquet import holds_parquet, parquet
from weightsmith.data.split import Source, from_arrays
from weightsmith.data.tiny_imagenet import inside, is_tiny_imagenet, tiny_imagenet
from weightsmith.errors import WeightsmithError, near_path, perhaps
from weightsmith.files import default_cache_dir, user_path

FORMS = (
    '"digits", "coloured-digits", the path of a MedMNIST-layout .npz file, of a parquet file or folder in the hub\'s layout, '
    "of a folder with one folder of images a class, or of Tiny-ImageNet's folder"
)
"""What a data set may be given as."""

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".7z", ".rar")


def digits() -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey; their 17 levels are spread over 0 to 255."""
    table = load_digits()
    images = np.rint(table.images * (255 / 16)).astype(np.uint8)
    return _of_digits("digits", images, table.target)


def coloured_digits() -> Source:
    """The same digits in the same order, each class drawn in a hue of its own: (1797, 8, 8, 3) uint8.

    The colour tells the class; the shape hardly does. Ten hues, 36° apart, are turned by up to 6° an image and have one
    luma (ITU-R 601), so that greyscale takes the colour cue away whole. What remains then is faint strokes, a tenth of
    the range brighter than their ground, under noise of up to 0.15 of the range at each pixel; and a brightness that
    differs by up to 0.03 from image to image, whatever the class. The images are always the same.
    """
    table = load_digits()
    stroke = table.images / 16
    # The stream of this old generator is promised never to change, whatever the version of numpy.
    random = np.random.RandomState(0)

    def uniform(*shape: int) -> np.ndarray:
        return 2 * random.random_sample(shape) - 1

    luma = 0.42 + 0.1 * stroke + 0.03 * uniform(len(stroke), 1, 1) + 0.15 * uniform(*stroke.shape)
    hue = np.deg2rad(36 * table.target + 6 * uniform(len(stroke)))[:, None, None]
    red, blue = 0.3 * stroke * np.sin(hue), 0.3 * stroke * np.cos(hue)  # over the luma; nothing leaves [0, 1]
    green = -(0.299 * red + 0.114 * blue) / 0.587  # so that the luma stays as it is
    images = np.rint(255 * (luma[..., None] + np.stack([red, green, blue], -1))).astype(np.uint8)
    return _of_digits("coloured-digits", images, table.target)


def _of_digits(name: str, images: np.ndarray, target: np.ndarray) -> Source:
    labels = np.asarray(target, dtype=np.int64)
    source = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    names = tuple(str(digit) for digit in range(10))
    return Source(name=name, parts={"train": from_arrays(images, labels, names, source, "train")})


def medmnist(
    path: str | Path = "~/.medmnist/pathmnist_224.npz",
    cache_dir: Path | None = None,
    class_names: Sequence[str] | None = None,
    *,
    blank: bool = False,
) -> Source:
    """A MedMNIST-layout .npz file, with the parts that it holds.

    Args:
        path: the file; one too large for memory is read through `cache_dir`.
        cache_dir: by default `default_cache_dir()`.
        class_names: one name a class; by default those of the published set whose name the file bears
            (pathmnist_224.npz), and "class 0", "class 1"... for a file of any other name.
        blank: black images, see `open_npz`.

    Raises:
        WeightsmithError: a bad file (see `open_npz`), a label out of range, a class that train lacks.
    """
    file = user_path(path)
    arrays = open_npz(file, cache_dir or default_cache_dir(), blank=blank)
    labels = {part: arrays[f"{part}_labels"] for part in PARTS if f"{part}_labels" in arrays}
    published = known_file(file)
    known = None if published is None or class_names is not None else published[0]
    if class_names is not None:
        names = tuple(class_names)
    elif known is not None:
        names = known.class_names
    else:
        # More classes than train images could not all have one, and a stray label of billions shall make no names.
        highest = min(max(int(part.max(initial=0)) for part in labels.values()), len(labels["train"]) - 1)
        names = tuple(f"class {label}" for label in range(highest + 1))
    _check_labels(file, labels, names, known)
    source = fingerprint(file)
    return Source(
        name=file.name,
        parts={
            part: from_arrays(arrays[f"{part}_images"], values, names, source, part) for part, values in labels.items()
        },
    )


def _check_labels(file: Path, labels: dict[str, np.ndarray], names: tuple[str, ...], known: KnownSet | None) -> None:
    for part, values in labels.items():
        wrong = np.flatnonzero((values < 0) | (values >= len(names)))
        if len(wrong):
            rename = f", or rename the file if it is not the published {known.name}" if known else ""
            raise WeightsmithError(
                f"label {values[wrong[0]]} at position {wrong[0]} of the {part} part of {file} is outside "
                f"0..{len(names) - 1}: correct the labels{rename}"
            )
    in_train = np.bincount(labels["train"], minlength=len(names)) > 0
    for part, values in labels.items():
        absent = np.flatnonzero((np.bincount(values, minlength=len(names)) > 0) & ~in_train)
        if len(absent):
            raise WeightsmithError(
                f"class {names[absent[0]]!r} is in the {part} part of {file} but not in its train part: "
                "add train images of it, or leave the class out"
            )


def open_data(
    spec: str, image_size: int | None = None, cache_dir: Path | None = None, *, blank: bool = False
) -> Source:
    """The data set that `--data-path` names.

    Args:
        spec: "digits" or "coloured-digits", or the path of an .npz file, a parquet file or a folder (./digits for one
            of that name).
        image_size: side in pixels that a folder's images are scaled to, by default 224; those of Tiny-ImageNet only where
            theirs is larger. Other sources have their size.
        cache_dir: by default `default_cache_dir()`.
        blank: black images where others would have to be unpacked, see `open_npz`.

    Raises:
        WeightsmithError: any other spec, or a bad file or folder.
    """
    return _open(spec, image_size, cache_dir, "--data-path", blank)


def open_part(spec: str, image_size: int | None = None, cache_dir: Path | None = None) -> ImageSet:
    """The images that `--edit-from` names: as `open_data`, with the part after a colon ("site.npz:test").

    Raises:
        WeightsmithError: as `open_data`; also a part that is not there, or none named where there are several.
    """
    base, colon, part = spec.rpartition(":")
    # One letter before the colon is a drive, and what follows then a path.
    if colon and len(base) > 1 and not {"/", "\\"} & set(part) and not os.path.exists(user_path(spec)):
        return _open(base, image_size, cache_dir, "--edit-from").part(part)
    source = _open(spec, image_size, cache_dir, "--edit-from")
    if len(source.parts) > 1:
        choices = " or ".join(f"{spec}:{name}" for name in source.parts)
        raise WeightsmithError(f"--edit-from {spec} has {len(source.parts)} parts: give {choices}")
    return next(iter(source.parts.values()))


_BUILT_IN: dict[str, Callable[[], Source]] = {"digits": digits, "coloured-digits": coloured_digits}


def _open(spec: str, image_size: int | None, cache_dir: Path | None, flag: str, blank: bool = False) -> Source:
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    path = user_path(spec)
    if spec and path.suffix.lower() == ".npz":
        return medmnist(path, cache_dir, blank=blank)
    if spec and (path.suffix.lower() == ".parquet" or holds_parquet(path)):
        return parquet(path)
    if spec and os.path.isdir(path):
        size = 224 if image_size is None else image_size
        if is_tiny_imagenet(path):
            return tiny_imagenet(path, size)
        nested = inside(path)
        if nested is not None:
            raise WeightsmithError(f"{flag} {spec} holds Tiny-ImageNet in a folder of its own: give {nested}")
        return folder(path, size)
    if spec and path.name.lower().endswith(_ARCHIVES) and os.path.isfile(path):
        raise WeightsmithError(f"{flag} {spec} is an archive: unpack it and give the folder that it holds")
    command = fetch_command(user_path(DEFAULT_FOLDER) / f"{spec}.npz")
    hint = f"; {command} fetches that set as a file" if command else ""
    meant = perhaps(spec, _BUILT_IN) or (near_path(path) if spec else "")
    raise WeightsmithError(f"{flag} {spec!r} is no data set: give {FORMS}{hint}{meant}")
