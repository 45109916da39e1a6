"""How much memory tensors take at a time while something runs, counted as they are made and freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that were made since it was entered and are still there, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {place_of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and place_of(one) not in given | self.known:
                self._add(one)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = place_of(tensor), storage.nbytes()
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def place_of(tensor: torch.Tensor) -> int:
    """What tells apart the memory of tensors that are there at the same time."""
    return tensor.untyped_storage().data_ptr()


def most_bytes(work: Callable[[], object]) -> int:
    """Bytes of the tensors that `work` makes and has at a time at most; what kernels use inside is not seen."""
    live = _Live()
    with live:
        held = work()
    del held
    return live.most
