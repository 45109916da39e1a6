"""Weights that stay in their file: maps of files, forgotten page by page, and how much memory is free.

Loaders of safetensors map a checkpoint into memory rather than read it: a page is read when something first looks at it,
and a page that is written to becomes the process's own. What was only read can be forgotten at any time and comes back from
the file, with the same bytes, when it is next looked at; so a network need not fit into memory to be run, block by block.
What was written, the kernel tells apart (`/proc/self/pagemap`), and it is never forgotten unless that is asked for. Linux
alone says so.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

PAGE = mmap.PAGESIZE
_PRESENT, _SWAPPED, _OF_FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)
"""Bits of an entry of pagemap: in memory, swapped out, the file's and not the process's own (proc_pid_pagemap(5))."""
_WILL_NEED, _DO_NOT_NEED, _PAGE_OUT = 3, 4, 21
"""Advice of madvise(2)."""

_STAYING: WeakSet[nn.Module] = WeakSet()


def stay(module: nn.Module) -> None:
    """Note that a network's weights stay in their files; who goes through all of them forgets each behind it."""
    _STAYING.add(module)


def stays(module: nn.Module) -> bool:
    """Whether the weights stay in their files."""
    return module in _STAYING


@cache
def can_map() -> bool:
    """Whether this system tells which pages are a file's and were not written to."""
    return sys.platform == "linux" and Path("/proc/self/pagemap").exists()


def in_files(tensors: Iterable[Tensor]) -> int:
    """Bytes of those tensors that lie in maps of files."""
    maps = sorted(_maps())
    starts = np.array([start for start, _ in maps], dtype=np.uint64)
    found = 0
    for tensor in tensors:
        start, end = _span(tensor)
        place = int(np.searchsorted(starts, np.uint64(start), side="right")) - 1
        found += (end - start) * (place >= 0 and end <= maps[place][1])
    return found


def release(tensors: Iterable[Tensor]) -> None:
    """Forget the pages of tensors that were read and not written to; the next look at them reads them again.

    Tensors that lie in no file are left as they are, and so is everything where the system does not tell.
    """
    if not can_map():
        return
    for first, end in _joined(tensors):
        own = np.flatnonzero(_own(first, end))
        for start, stop in zip([0, *(own + 1)], [*own, (end - first) // PAGE], strict=True):
            if stop > start:
                _advise(first + int(start) * PAGE, int(stop - start) * PAGE, _DO_NOT_NEED)


def ask_for(tensors: Iterable[Tensor]) -> None:
    """Have the pages of tensors read ahead, while something else is computed."""
    for first, end in _joined(tensors):
        _advise(first, end - first, _WILL_NEED)


def push_out(tensors: Iterable[Tensor]) -> None:
    """Forget the pages of tensors, and have the system forget them too, so that the next look reads the disk."""
    for first, end in _joined(tensors):
        _advise(first, end - first, _PAGE_OUT)


def unchanged(tensor: Tensor) -> bool:
    """Whether no page of a tensor that lies in a map of a file was written to."""
    return not bool(_own(*_pages(tensor)).any())


def forget(tensor: Tensor) -> None:
    """Take back everything that was written to a tensor that lies in a map of a file: it is as the file has it."""
    start, end = _span(tensor)
    first, last = _pages(tensor)
    # The outermost pages may hold a neighbour's numbers, which stay as they are.
    edges = [
        (address, ctypes.string_at(address, size)) for address, size in ((first, start - first), (end, last - end))
    ]
    _advise(first, last - first, _DO_NOT_NEED)
    for address, before in edges:
        if ctypes.string_at(address, len(before)) != before:
            ctypes.memmove(address, before, len(before))


def put_aside(tensor: Tensor, folder: Path) -> Tensor:
    """The same numbers in a file of their own in `folder`, which goes when they do, rather than in memory.

    Raises:
        OSError: the folder cannot be made, or its disk is full.
    """
    if tensor.ndim == 2 and tensor.mT.is_contiguous() and not tensor.is_contiguous():
        return put_aside(tensor.mT, folder).mT  # LAPACK's order: what computes with it next gives the same bits
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".aside-", suffix=".tmp") as file:
        tensor.contiguous().numpy().tofile(file)
        file.flush()
        mapped = torch.from_file(file.name, shared=False, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape)


def free_memory() -> int | None:
    """Bytes that this process may still take without anything being pushed out, as the system and its control group have it."""
    free = [*_of_system(), *_of_groups()]
    return max(0, min(free)) if free else None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor that is one piece: of its first byte, and behind its last."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def _pages(tensor: Tensor) -> tuple[int, int]:
    start, end = _span(tensor)
    return start // PAGE * PAGE, -(-end // PAGE) * PAGE


def _joined(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """Ranges of pages that hold the tensors, those that touch made one."""
    spans = sorted(_pages(tensor) for tensor in tensors if tensor.device.type == "cpu" and tensor.numel())
    while spans:
        first, end = spans.pop(0)
        while spans and spans[0][0] <= end:
            end = max(end, spans.pop(0)[1])
        yield first, end


def _own(first: int, end: int) -> np.ndarray:
    """For each page of a range, whether it is the process's own: written to, or in no file at all."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(first // PAGE * 8)
        entries = np.frombuffer(file.read((end - first) // PAGE * 8), np.uint64)
    of_process = ((entries & _PRESENT) != 0) & ((entries & _OF_FILE) == 0)
    found: np.ndarray = of_process | ((entries & _SWAPPED) != 0)
    return found


def _maps() -> Iterator[tuple[int, int]]:
    """Ranges of addresses that are maps of files."""
    if not can_map():
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = (int(part, 16) for part in span.split("-"))
            yield start, end


def _advise(first: int, size: int, advice: int) -> None:
    _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)  # only advice: what fails changes nothing


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _of_system() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return


def _of_groups() -> Iterator[int]:
    """What the process's control groups leave it, of either version; pages of files are given back when needed."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = Path("/sys/fs/cgroup") / kinds
        most, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            try:
                limit = int((group / most).read_text())
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
                yield limit - int((group / used).read_text()) + cached
            except (OSError, ValueError):  # "max", no such group in this container, or no limits at all
                pass
            if group == top:
                break
