"""Kinds of numbers in a checkpoint: safetensors' name, torch's name, bytes, and how numpy computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """One kind of number.

    Attributes:
        name: as safetensors has it, "BF16".
        torch_name: attribute of the torch module.
        size: bytes of one.
        layout: the numpy type whose bits they are, for bfloat16 that of equal width.
        computed: the numpy type in which they are merged, "" where they are taken from the base as they are.
    """

    name: str
    torch_name: str
    size: int
    layout: str
    computed: str = ""

    @property
    def floating(self) -> bool:
        """Whether such tensors are merged."""
        return bool(self.computed)

    @property
    def torch(self) -> torch.dtype:
        """The torch type."""
        import torch  # heavy, and a merge does without

        found: torch.dtype = getattr(torch, self.torch_name)
        return found

    def widened(self, bits: Array, out: Array | None = None) -> Array:
        """Numbers of the computed type from stored ones, into `out` where given; exact.

        Args:
            bits: of the type `layout`.
        """
        if self.name == "BF16":  # the upper half of a float32
            wide: Array = np.empty(bits.shape, np.uint32) if out is None else out.view(np.uint32)
            np.left_shift(bits, 16, out=wide, dtype=np.uint32)
            return wide.view(np.float32)
        if out is None:
            return bits.astype(self.computed)
        out[...] = bits
        return out

    def narrowed(self, numbers: Array) -> Array:
        """Numbers of the computed type as they are stored: rounded to nearest, ties to even, as torch does.

        Returns:
            Of the type `layout`; `numbers` itself where nothing is to be rounded.
        """
        if self.name == "BF16":
            wide = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
            rounded = (wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            quiet = np.isnan(numbers)
            if quiet.any():
                rounded[quiet] = 0x7FC0  # rounding would carry some of them over to infinity
            return rounded.astype(np.uint16)
        with np.errstate(over="ignore"):  # what becomes infinite is found by the gate
            return numbers.astype(self.layout, copy=False)


_KINDS = (
    Kind("F64", "float64", 8, "<f8", "f8"),
    Kind("F32", "float32", 4, "<f4", "f4"),
    Kind("F16", "float16", 2, "<f2", "f4"),
    Kind("BF16", "bfloat16", 2, "<u2", "f4"),
    Kind("F8_E4M3", "float8_e4m3fn", 1, "u1"),
    Kind("F8_E5M2", "float8_e5m2", 1, "u1"),
    Kind("C64", "complex64", 8, "<c8"),
    Kind("I64", "int64", 8, "<i8"),
    Kind("I32", "int32", 4, "<i4"),
    Kind("I16", "int16", 2, "<i2"),
    Kind("I8", "int8", 1, "i1"),
    Kind("U64", "uint64", 8, "<u8"),
    Kind("U32", "uint32", 4, "<u4"),
    Kind("U16", "uint16", 2, "<u2"),
    Kind("U8", "uint8", 1, "u1"),
    Kind("BOOL", "bool", 1, "?"),
)
KINDS = {kind.name: kind for kind in _KINDS}
"""Every kind that a checkpoint may hold, by its name in safetensors."""
BY_TORCH_NAME = {kind.torch_name: kind for kind in _KINDS}
"""The same by the name that torch has for it."""
