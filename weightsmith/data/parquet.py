"""Image data sets as parquet files, in the layout of the Hugging Face hub: encoded images beside a class number."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weightsmith.data.decode import bombs_refused, decoded, is_grey
from weightsmith.data.images import ImageSet
from weightsmith.data.npz import PARTS
from weightsmith.data.split import Source
from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of, user_path

_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""What the files of a part are called: `validation-00000-of-00002.parquet` belongs to val."""

_CLASSES = ("label", "labels", "fine_label", "class")
"""What the hub calls the column of classes, the likeliest first."""

_SAMPLE = 64
"""Images, spread over a part, that speak for all of it where reading each would take too long."""


@dataclass(frozen=True)
class EncodedStore:
    """Encoded images (PNG, JPEG) as pixels: each read decodes them. They stay encoded in memory, as Arrow read them.

    Attributes:
        column: the Arrow column of bytes, in chunks.
        origin: for messages.
        shape: (height, width, channels) that images are brought to, bilinearly.
    """

    column: Any
    origin: str
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.column)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Images at these positions, (n, height, width, channels) uint8. Raises `WeightsmithError` for a damaged one."""
        out = np.empty((len(positions), *self.shape), dtype=np.uint8)
        for place, position in enumerate(positions.tolist()):
            out[place] = self._decode(position).reshape(self.shape)
        return out

    def only(self, positions: np.ndarray) -> EncodedStore:
        return replace(self, column=self.column.take(positions))

    def _decode(self, position: int) -> np.ndarray:
        height, width, channels = self.shape
        try:
            image = _pixels(self.column[position].as_py()).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # decoders raise whatever their format's damage leads them to
            raise WeightsmithError(
                f"image {position} of {self.origin} cannot be read ({cause_of(error)}): remove or replace it"
            ) from error
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)


def parquet(path: str | Path) -> Source:
    """A parquet file (one part, "train"), or a folder of them by part: `train-*.parquet`, `validation-*`, `test-*`.

    Each has a column of encoded images (bytes, or the hub's struct with `bytes`) and a column of integer classes; class
    names come from the hub's metadata. All parts get the size of the first train image, and three channels if any of
    64 train images, evenly spread, has colour.

    The fingerprint covers name and size of each file, all classes, and the bytes of 64 images a part.

    Raises:
        WeightsmithError: no such columns, a damaged file, a label out of range, or pyarrow missing.
    """
    root = user_path(path)
    files = _files(root)
    tables = {part: [_read(file) for file in paths] for part, paths in files.items()}
    first = tables["train"][0]
    image, label = _columns(first, files["train"][0])
    names = _class_names(first, label)
    shape: tuple[int, int, int] | None = None
    parts: dict[str, ImageSet] = {}
    digest = hashlib.sha256()
    for part, pieces in tables.items():  # train is the first
        column, labels = _joined(pieces, image, label, files[part])
        if not len(labels):
            raise WeightsmithError(f"the {part} part of {root} holds no images: give a data set that does")
        if names is None:
            # More classes than images could not all have one, and a stray label of billions shall make no names.
            names = tuple(f"class {number}" for number in range(min(int(labels.max(initial=0)), len(labels) - 1) + 1))
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise WeightsmithError(
                f"label {labels[wrong[0]]} of image {wrong[0]} of the {part} part of {root} is outside "
                f"0..{len(names) - 1}: correct the labels"
            )
        for file in files[part]:
            digest.update(f"{file.name}\0{os.path.getsize(file)}\n".encode())
        digest.update(labels.astype("<i8").tobytes())
        for place in _spread(len(labels)):
            digest.update(column[place].as_py() or b"")
        shape = shape or _shape(column, root)
        parts[part] = ImageSet(
            store=EncodedStore(column, f"the {part} part of {root}", shape),
            positions=np.arange(len(labels), dtype=np.int64),
            all_labels=labels,
            class_names=names,
            source="",
            part=part,
        )
    source = digest.hexdigest()
    return Source(
        name=root.resolve().name, parts={part: replace(images, source=source) for part, images in parts.items()}
    )


def holds_parquet(path: Path) -> bool:
    """Whether this is a folder of parquet files; one that cannot be looked into is none."""
    try:
        return path.is_dir() and any(name.endswith(".parquet") for name in os.listdir(path))
    except OSError:
        return False


def _files(root: Path) -> dict[str, list[Path]]:
    if root.is_file():
        return {"train": [root]}
    if not root.is_dir():
        raise WeightsmithError(f"there is no parquet file {root}: check the path")
    found: dict[str, list[Path]] = {}
    for file in sorted(root.glob("*.parquet")):
        part = _NAMES.get(file.name.split("-")[0].removesuffix(".parquet"))
        if part is not None:
            found.setdefault(part, []).append(file)
    if "train" not in found:
        raise WeightsmithError(f"{root} has no train-*.parquet: name the files of each part train-, validation-, test-")
    return {part: found[part] for part in PARTS if part in found}


def _read(file: Path) -> Any:
    try:
        from pyarrow import parquet as reader
    except ImportError as error:
        raise WeightsmithError(f"reading {file} needs pyarrow: pip install 'weightsmith[parquet]'") from error
    try:
        return reader.read_table(file)
    except Exception as error:  # pyarrow's own types, of which there are many
        raise WeightsmithError(f"{file} is damaged or no parquet file ({cause_of(error)}): fetch it again") from error


def _columns(table: Any, file: Path) -> tuple[str, str]:
    """(image column, label column) by type: the first of a struct with bytes or of bytes, and of integers."""
    import pyarrow as pa

    there = table.schema
    images = sorted((f for f in there if _holds_images(f.type)), key=lambda f: not pa.types.is_struct(f.type))
    # Where a column is called a label, no other is one: a number of an image, say, is no class.
    named = [there.field(name) for name in _CLASSES if name in there.names]
    labels = [field for field in named or there if pa.types.is_integer(field.type)]
    if not images or not labels:
        lacking = "encoded images" if not images else "integer classes"
        listing = ", ".join(f"{field.name} ({field.type})" for field in there) or "none"
        raise WeightsmithError(
            f"{file} has no column of {lacking} among its columns, {listing}: give a file in the hub's layout"
        )
    return images[0].name, labels[0].name


def _holds_images(kind: Any) -> bool:
    """Whether an Arrow type is of bytes, or of a struct with them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _joined(tables: Sequence[Any], image: str, label: str, files: Sequence[Path]) -> tuple[Any, np.ndarray]:
    """(encoded images, (n,) int64 classes) of the files of one part."""
    import pyarrow as pa

    chunks: list[Any] = []
    labels: list[np.ndarray] = []
    for table, file in zip(tables, files, strict=True):
        kinds = {field.name: field.type for field in table.schema}
        if not ({image, label} <= kinds.keys() and _holds_images(kinds[image]) and pa.types.is_integer(kinds[label])):
            raise WeightsmithError(
                f"{file} has not the columns {image} (encoded images) and {label} (integer classes) that the first file "
                "has: give the files of one data set"
            )
        column = table[image]
        chunks += [chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk for chunk in column.chunks]
        if table[label].null_count:
            raise WeightsmithError(
                f"{file} has {table[label].null_count} images without a class in {label}: leave them out"
            )
        labels.append(table[label].to_numpy().astype(np.int64))
    if len({str(chunk.type) for chunk in chunks}) != 1:  # of several sizes, or there is none
        chunks = [chunk.cast(pa.large_binary()) for chunk in chunks]
        return pa.chunked_array(chunks, pa.large_binary()), np.concatenate(labels)
    return pa.chunked_array(chunks), np.concatenate(labels)


def _class_names(table: Any, label: str) -> tuple[str, ...] | None:
    """The names that the hub's metadata gives the classes, None without any."""
    try:
        entries = json.loads((table.schema.metadata or {})[b"huggingface"])
        names = entries["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _spread(n: int) -> list[int]:
    """Places of up to 64 of n images, evenly spread, the first and the last among them."""
    return np.linspace(0, n - 1, min(n, _SAMPLE)).astype(int).tolist()  # type: ignore[no-any-return]


def _shape(column: Any, root: Path) -> tuple[int, int, int]:
    """(height, width) of the first image, and 3 channels unless all of a sample are grey."""
    try:
        image = _pixels(column[0].as_py())
    except Exception as error:
        raise WeightsmithError(f"the first image of {root} cannot be read ({cause_of(error)}): replace it") from error
    grey = all(_is_grey(column[place].as_py()) for place in _spread(len(column)))
    return image.height, image.width, 1 if grey else 3


def _is_grey(encoded: bytes | None) -> bool:
    """Whether an image's header says so; a damaged one says nothing and is named when it is read."""
    try:
        with bombs_refused(), Image.open(io.BytesIO(encoded or b"")) as image:
            return is_grey(image.mode)
    except Exception:  # whatever the damage leads a decoder to
        return True


def _pixels(encoded: bytes | None) -> Image.Image:
    """The decoded image at 8 bits a channel."""
    if encoded is None:
        raise ValueError("there is no image")
    if not encoded:
        raise ValueError("it is empty")
    return decoded(io.BytesIO(encoded))
