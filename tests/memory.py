"""Memory that runs out, as torch and NumPy say it, where more samples pass than it is said to hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:83] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"
    ),
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4")),
)
"""What torch says on a GPU, on Linux and on Windows; Python; NumPy."""


@contextmanager
def memory_for(most: int, error: Exception = NO_MEMORY[0]) -> Iterator[list[int]]:
    """Every layer norm of the tokens of more than `most` samples finds no memory; the list has how many passed."""
    forward, passed = nn.LayerNorm.forward, list[int]()

    def limited(self: nn.LayerNorm, values: Tensor) -> Tensor:
        if values.ndim == 3 and values.shape[1] > 1:
            if len(values) > most:
                raise error
            passed.append(len(values))
        return forward(self, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.LayerNorm, "forward", limited)
        yield passed
