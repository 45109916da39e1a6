"""Tables of numbers with a label a row: CSV files in and out, as sources that are split and sealed like images."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np

from weightsmith.data.split import Source, from_arrays
from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, cause_of, user_path

LABEL = "label"
"""The last column's name."""


def write_table(path: Path | str, features: np.ndarray, labels: np.ndarray) -> None:
    """Write a CSV file atomically: feature_0 … feature_{d-1}, label. Nine digits hold every float32 exactly.

    Args:
        features: (n, d) float32; labels: (n,) integers from 0.
    """
    header = ",".join([f"feature_{column}" for column in range(features.shape[1])] + [LABEL])
    line = ",".join(["%.9g"] * features.shape[1] + ["%d"])
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header + "\n")
        for row, label in zip(features.tolist(), labels.tolist(), strict=True):
            file.write(line % (*row, label) + "\n")


def open_table(path: Path | str) -> Source:
    """A CSV file of features, the last column `label`, as a source with one part, "train".

    A row of d features is held as an image of one pixel with d channels, (d, 1, 1) float32: `Features` reads it.

    Raises:
        WeightsmithError: naming the file: missing, no such columns, rows of another length, words, NaN or infinity among the
            numbers, labels that are no integers from 0, a class without rows.
    """
    file = user_path(path)
    columns = _columns(file)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*contained no data")  # which is told below
            table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2, dtype=np.float64, comments=None)
    except (OSError, ValueError) as error:
        raise WeightsmithError(
            f"{file} is no table of numbers ({cause_of(error)}): give {len(columns)} numbers in every row"
        ) from error
    if not len(table) or table.shape[1] != len(columns):
        what = f"{table.shape[1]} numbers a row" if len(table) else "no rows"
        raise WeightsmithError(f"{file} has {len(columns)} columns and {what}: write the file again")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise WeightsmithError(
            f"{file} holds {table[row, column]} in column {columns[column]!r} of row {row + 1}: "
            "leave the row out, or give it a number"
        )
    labels = _labels(file, table[:, -1])
    features = table[:, :-1].astype(np.float32)
    digest = hashlib.sha256(features.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    names = tuple(f"class {label}" for label in range(int(labels.max()) + 1))
    return Source(file.stem, {"train": from_arrays(features[:, None, None, :], labels, names, digest, "train")})


def _columns(file: Path) -> list[str]:
    """The header of a CSV file. Raises `WeightsmithError` unless `label` is its last column, and there are others."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            header = lines.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsmithError(f"{file} cannot be read ({cause_of(error)}): give a CSV file of features") from error
    columns = [name.strip().strip('"') for name in header.split(",")]
    if len(columns) < 2 or columns[-1] != LABEL or LABEL in columns[:-1]:
        last = (
            f"its last column is {columns[-1]!r}"
            if len(columns) > 1 and columns[-1] != LABEL
            else "its header is not so"
        )
        raise WeightsmithError(
            f"{file} must have a header with one column a feature and then {LABEL!r}, and {last}: name the columns so"
        )
    return columns


def _labels(file: Path, values: np.ndarray) -> np.ndarray:
    labels = values.astype(np.int64)
    wrong = np.flatnonzero((labels != values) | (values < 0))
    if len(wrong):
        raise WeightsmithError(
            f"{file} has the label {values[wrong[0]]:g} in row {wrong[0] + 1}: labels are whole numbers from 0, "
            "number the classes so"
        )
    if labels.max() >= len(labels):  # more classes than rows; a stray label of billions shall make no names
        raise WeightsmithError(f"{file} has {len(labels)} rows and a label {labels.max()}: number the classes from 0")
    absent = np.flatnonzero(np.bincount(labels) == 0)
    if len(absent):
        raise WeightsmithError(f"{file} has no row of class {absent[0]}: number the classes without gaps, from 0")
    return labels
