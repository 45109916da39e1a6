"""Batches that memory does not hold: half as many at a time from there on, down to one.

What asks for too much memory differs by place: torch on a GPU has an exception of its own, its allocator on a CPU a
RuntimeError, NumPy and Python MemoryError. The words are those that accelerate's `find_executable_batch_size` looks for, and
a few more.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from weightsmith.errors import WeightsmithError

T = TypeVar("T")

_SIGNS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
REMEDY = "give a smaller model or smaller inputs, close what else uses the memory, or take a machine with more of it"

_log = logging.getLogger(__name__)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class Fitting:
    """How many samples pass at a time: as many as are asked for, until memory says how many it holds.

    Attributes:
        what: what passes, in words: "predicting".
        most: the largest number that may still be tried; None while nothing failed.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.most: int | None = None
        self.told = False

    def parts(self, work: Callable[[slice], T], count: int) -> Iterator[T]:
        """`work` of consecutive places among `count` samples, in order: of all at once where memory holds them.

        `work` may be called again for places that it did not get to the end of, so it changes nothing before its end.

        Raises:
            WeightsmithError: memory does not even hold one.
        """
        start = 0
        while start < count:
            size = min(count - start, self.most or count)
            done = tried(work, slice(start, start + size))
            if done is None:
                self.shrink(size)
                continue
            yield done[0]
            start += size

    def each(self, work: Callable[..., T], batches: Iterable[Sequence[Any]]) -> Iterator[T]:
        """`work(*batch)` of each batch, in as many parts as memory needs.

        A batch has tensors or lists with the same samples, in order; as with `parts`, `work` may be called again for samples
        that it did not get to the end of.
        """
        for batch in batches:

            def part(which: slice, batch: Sequence[Any] = batch) -> T:
                return work(*(one[which] for one in batch))

            yield from self.parts(part, len(batch[0]))

    def shrink(self, size: int) -> None:
        """Half of `size` at a time from here on. Raises `WeightsmithError` where that was one already."""
        if size <= 1:
            raise WeightsmithError(f"memory ran out while {self.what}, one at a time: {REMEDY}")
        self.tell(size)
        self.most = size // 2

    def tell(self, size: int) -> None:
        """Log, once, that so many are too many."""
        if not self.told:
            _log.warning("memory ran out while %s, %d at a time: it goes on with fewer", self.what, size)
        self.told = True


def tried(work: Callable[..., T], *given: Any) -> tuple[T] | None:
    """What work came to, in a tuple; None where memory ran out, which has been given back by then."""
    try:
        return (work(*given),)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Out of the handler, so that no traceback holds on to the tensors of the frames that failed.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # what is left in cycles: worth its second there alone
        torch.cuda.empty_cache()
    return None
