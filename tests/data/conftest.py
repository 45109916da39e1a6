"""Small data sets that the tests of this room share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]


def part_arrays(part: str, n: int, n_classes: int = 3, channels: int = 3, seed: int = 0) -> Arrays:
    """One part in MedMNIST layout: random 6x6 images, each class in turn."""
    shape = (n, 6, 6) if channels == 1 else (n, 6, 6, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return {f"{part}_images": images, f"{part}_labels": (np.arange(n) % n_classes).astype(np.uint8)[:, None]}


@pytest.fixture
def arrays() -> Arrays:
    """Three parts of 12, 6 and 3 images, 3 classes."""
    return part_arrays("train", 12) | part_arrays("val", 6, seed=1) | part_arrays("test", 3, seed=2)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an .npz file of the temporary folder."""

    def write(arrays: Arrays, name: str = "cells.npz", compressed: bool = False) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return write


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; a test that needs a file of it skips where the file is absent."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("WEIGHTSMITH_TEST_DATA", default))
