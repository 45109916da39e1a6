"""What a merge would cost, without writing it: pieces of some tensors are merged and timed, and counted for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from weightsmith.merge.merging import Merge, opened
from weightsmith.merge.methods import Method
from weightsmith.merge.pieces import PIECE

_SECONDS = 1.5
"""How long pieces are merged for the estimate."""
_MADE, _HISTOGRAM, _FACTORS = 10, 2**17, 4
"""Pieces that are computed beside those that are read, numbers of a histogram over 16 bits, whole matrices beside changes."""
_READ_BACK = 2
"""Times that the written numbers go by again: once when they are written, once when they are read back and compared."""


@dataclass(frozen=True)
class MergeCost:
    """What a merge costs.

    Attributes:
        target: where it goes.
        tensors, numbers: of the merged model; files, size: that are written, and their bytes.
        read: bytes of all sources.
        seconds: on this machine.
        memory: bytes of the pieces that are in memory at a time.
        timed: share of the numbers that was merged for the estimate.
    """

    target: Path
    tensors: int
    numbers: int
    files: int
    size: int
    read: int
    seconds: float
    memory: int
    timed: float


def merge_cost(
    method: Method,
    base: Any,
    models: Sequence[Any],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    head: str = "merge",
    dtype: str | None = None,
    max_shard_size: str | None = None,
    sha256: bool = False,
    overwrite: bool = False,
) -> MergeCost:
    """The cost of `weightsmith.merge.merge` with these arguments. Raises as it does, of what shows in the pieces tried."""
    with opened(
        method,
        base,
        models,
        out,
        weights=weights,
        head=head,
        dtype=dtype,
        max_shard_size=max_shard_size,
        sha256=sha256,
        overwrite=overwrite,
        notes=(),
    ) as (merge, target):
        files = merge.files()
        every = [tensor for shard in files for tensor in shard.tensors]
        size, numbers = sum(one.nbytes for one in every), sum(int(np.prod(one.shape, dtype=np.int64)) for one in every)
        prepared, merging, moving, share = _timed(merge, numbers)
        read = sum(one.nbytes for one in merge.every)
        # Pieces: what is read of base and models, the change of each, and what is made of them; histograms of magnitudes.
        count = len(merge.every)
        held = (2 * count - 1 + _MADE) * PIECE + (count - 1) * _HISTOGRAM * hasattr(method, "density")
        if method.name in ("tsv", "iso_c"):  # a matrix is taken apart whole: its change in each model, and the factors
            held += (2 * count + _FACTORS) * max(int(np.prod(one.shape, dtype=np.int64)) for one in every)
        seconds = prepared + merging * numbers + moving * (_READ_BACK * size + (read if sha256 else 0))
        return MergeCost(target, len(every), numbers, len(files), size, read, seconds, 4 * held, share)


def _timed(merge: Merge, numbers: int) -> tuple[float, float, float, float]:
    """(seconds before the first piece, seconds a number, seconds a byte that is hashed, share of the numbers merged)."""
    started = time.perf_counter()
    blender = merge.method.blender(merge.sources)
    prepared = time.perf_counter() - started
    done, spent, moved = 0, 0.0, 0.0
    copied = 0
    # The largest first, for they are most of the numbers.
    every = sorted((tensor for shard in merge.files() for tensor in shard.tensors), key=lambda one: -one.nbytes)
    started = time.perf_counter()
    for tensor in every:
        for _, bits in merge.pieces([tensor], blender):
            done += bits.size
            began = time.perf_counter()
            digest = xxhash.xxh3_128()
            digest.update(np.ascontiguousarray(bits).view("u1").data)
            bits.tobytes()
            moved += time.perf_counter() - began
            copied += bits.nbytes
        spent = time.perf_counter() - started
        if spent > _SECONDS:
            break
    return prepared, (spent - moved) / max(done, 1), moved / max(copied, 1), done / max(numbers, 1)
