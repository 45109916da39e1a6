"""Checkpoints of a few tensors for the tests of merging: a base, and models that are near it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def random_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Matrices, vectors, a scalar, an empty one, an integer buffer and a mask."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "embed.weight": random(13, 8),
        "blocks.0.fc.weight": random(8, 12),
        "blocks.0.fc.bias": random(12),
        "blocks.0.kernel": random(4, 3, 2, 2),
        "scale": random(),
        "nothing": torch.zeros(0, 3, dtype=dtype),
        "position_ids": torch.arange(7),
        "mask": torch.tensor([True, False, True]),
    }


def near(base: Tensors, seed: int, step: float = 0.1) -> Tensors:
    """The base with a small random change of every float tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + step * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


@pytest.fixture
def tensors() -> Callable[..., Tensors]:
    """`tensors(seed=0, dtype=torch.float32)`: a small state dict."""
    return random_tensors


@pytest.fixture
def changed() -> Callable[..., Tensors]:
    """`changed(base, seed, step=0.1)`: a model near the base."""
    return near


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(tensors, name)`: the tensors as NAME.safetensors."""

    def saved(tensors: Tensors, name: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        return path

    return saved
