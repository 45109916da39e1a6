"""Data parallel: the processes that torchrun started work as one.

Process 0 (rank 0) runs the command. The others decide nothing and write nothing: each waits for its share of a pass, does it,
and sends back what it came to. So there is one journal, one cache and one run folder, whoever reads along.

    torchrun --standalone --nproc-per-node 2 -m weightsmith locate trace ...

What crosses between the processes of one job is pickled, as torch.distributed does it with objects; nothing that is read from
a file is. Networks are sent once, and known by their fingerprint from then on.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from weightsmith.errors import WeightsmithError

if TYPE_CHECKING:
    import torch

__all__ = ["dealt", "divided", "everywhere", "helping", "led", "started", "summed", "world"]

T = TypeVar("T")
W = TypeVar("W")

_PIECE = 2**28
"""Bytes that are sent at a time."""

_KEPT = 2
"""Networks that a process keeps: the one that is worked on, and a teacher or the one before an edit."""

_PATIENCE = timedelta(days=30)
"""How long a process waits for its next share: as long as the command may spend on what is not shared."""

_FOUND_WITHIN = timedelta(minutes=10)
"""How long a process waits for the others at the start."""

_log = logging.getLogger(__name__)


class ElsewhereError(WeightsmithError):
    """A share could not be finished because of what another process met, which is told in place of this."""


class Shared(Protocol):
    """What is sent to a process once and kept there."""

    def shared_key(self) -> str:
        """Equal for equal content, and different for whatever differs in a pass."""
        ...


class _Team:
    """The processes of this job, as each of them sees it."""

    def __init__(self) -> None:
        self.size, self.rank = 1, 0
        self.device: Any = None
        self.group: Any = None
        self.busy = False
        self.known: dict[str, Any] = {}
        self.broken = False


_team = _Team()


def started() -> bool:
    """Whether this process is one of several that torchrun, or something like it, started."""
    return os.environ.get("WORLD_SIZE", "1").isdigit() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def helping() -> bool:
    """Whether this process is one of those that wait for shares."""
    return started() and os.environ.get("RANK", "0") != "0"


def world() -> int:
    """Processes that a pass can be shared among now: 1 where nobody helps, or where this one is doing a share already."""
    return 1 if _team.busy else _team.size


@contextmanager
def led() -> Iterator[None]:
    """Inside, process 0 has the others' help; the others stay here until it leaves, and then exit.

    Without torchrun nothing happens. A script of your own under torchrun stands whole inside of it.

    Raises:
        WeightsmithError: accelerate is missing, or the processes do not find one another.
    """
    if not started() or _team.size > 1:
        yield
        return
    _join()
    if _team.rank:
        _help()
        raise SystemExit(0)
    try:
        yield
    except Exception:
        _dismiss()
        raise
    except BaseException:  # an interrupt: somebody may be in the middle of a share, and torchrun ends them all
        _team.broken = True
        raise
    else:
        _dismiss()


def everywhere(
    function: Callable[..., T], shares: Sequence[tuple[Any, ...]], mine: Callable[[], T] | None = None
) -> list[T]:
    """`function(*shares[r])` in process r, all at once; what each came to, in that order.

    What cannot be sent, a network with somebody's hook in it say, is worked on here alone, share after share.

    Args:
        function: of a module, so that the other processes find it; in it `world()` is 1.
        shares: one a process.
        mine: called in this process in place of its share, with the same meaning.

    Raises:
        WeightsmithError: what the function raised in any of them, that of the first; a process that is gone.
    """
    if world() == 1:
        return [function(*share) for share in shares]
    assert len(shares) == _team.size
    try:
        fresh, order, bodies = _packed(function, shares[1:])
    except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError) as error:
        _log.warning("this cannot be shared with other processes (%s): one works alone", error)
        with _busy():
            return [mine() if mine is not None and not r else function(*share) for r, share in enumerate(shares)]
    with _connected():
        _tell("call", fresh, order)
        for rank, body in enumerate(bodies, start=1):
            _send(body, rank)
    failed: Exception | None = None
    done: list[Any] = [None] * _team.size
    try:
        with _busy():
            done[0] = function(*shares[0]) if mine is None else mine()
    except Exception as error:  # the others finish first, so that all wait for the same thing again
        failed = error
    with _connected():
        for rank in range(1, _team.size):
            how, what = pickle.loads(_received(rank))  # noqa: S301  (from a process of this job)
            if how == "done":
                done[rank] = what
            elif failed is None or (isinstance(failed, ElsewhereError) and not isinstance(what, ElsewhereError)):
                failed = what if isinstance(what, Exception) else RuntimeError(f"in process {rank}:\n{what}")
    if failed is not None:
        raise failed
    return done


def dealt(
    function: Callable[..., T], work: Sequence[W], share: Callable[[W], tuple[Any, ...]]
) -> Iterator[tuple[W, T]]:
    """Each piece of work with `function(*share(piece))`, as they are done: in a round every process does one."""
    for start in range(0, len(work), world()):
        together = work[start : start + world()]
        calls = [(function, share(piece)) for piece in together] + [(None, ())] * (world() - len(together))
        yield from zip(together, everywhere(_called, calls), strict=False)


def _called(function: Callable[..., T] | None, share: tuple[Any, ...]) -> T | None:
    return None if function is None else function(*share)


def divided(count: int, parts: int | None = None) -> list[range]:
    """0 … count cut into one run a process, as even as can be, in order; some are empty where there are too few."""
    parts = world() if parts is None else parts
    ends = [count * part // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(ends)]


def summed(values: torch.Tensor) -> None:
    """Add up a tensor over all processes, in each of them; every one must call it, in a share."""
    import torch.distributed as dist

    with _connected():
        dist.all_reduce(values, group=_team.group if values.device.type == "cpu" else None)


def _join() -> None:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise WeightsmithError("several processes need accelerate: pip install 'weightsmith[parallel]'") from error
    import torch
    import torch.distributed as dist

    try:
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_FOUND_WITHIN)
        _team.group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise WeightsmithError(
            f"the processes do not find one another ({str(error).splitlines()[0]}): see that MASTER_ADDR and MASTER_PORT can "
            "be reached from every machine, or start one process without torchrun"
        ) from error
    assert state.num_processes == int(os.environ["WORLD_SIZE"])
    _team.size, _team.rank, _team.device = state.num_processes, state.process_index, state.device
    _team.known, _team.busy, _team.broken = {}, False, False


def _dismiss() -> None:
    """Send the others home."""
    import torch.distributed as dist

    if not _team.broken:
        with _connected():
            _tell("stop", {}, [])
    _team.size = 1
    dist.destroy_process_group()


def _help() -> None:
    """Do shares until told to stop, or until process 0 is gone, which says why itself."""
    import torch.distributed as dist

    logging.disable(logging.WARNING)  # process 0 speaks for all
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as it does of Ctrl-C
    _team.busy = True
    while True:
        try:
            how, shared, order = pickle.loads(_broadcast(b""))  # noqa: S301  (from process 0 of this job)
            if how == "stop":
                break
            body = _received(0)
        except RuntimeError as error:
            raise SystemExit(1) from error
        answer = _answered(body, shared, order)
        try:
            _send(_pickled(answer, {}), 0)
        except RuntimeError as error:
            raise SystemExit(1) from error
    dist.destroy_process_group()


def _answered(body: bytes, shared: dict[str, bytes], order: list[str]) -> tuple[str, Any]:
    """("done", what a share came to), or ("failed", why)."""
    try:
        known = _team.known | {key: _unpacked(content, {}) for key, content in shared.items()}
        _team.known = {key: known[key] for key in order}
        function, share = _unpacked(body, _team.known)
        return "done", function(*share)
    except WeightsmithError as error:
        return "failed", error
    except Exception:  # a defect: process 0 tells it
        return "failed", traceback.format_exc()


def _packed(
    function: Callable[..., Any], shares: Sequence[tuple[Any, ...]]
) -> tuple[dict[str, bytes], list[str], list[bytes]]:
    """(what is sent once and is not there yet, all that is kept then, what is sent to each process); nothing is sent here."""
    shared: dict[str, Any] = {}
    bodies = [_pickled((function, share), shared) for share in shares]
    fresh = {key: _pickled(value, None) for key, value in shared.items() if key not in _team.known}
    older = [key for key in _team.known if key not in shared]
    return fresh, [*older, *shared][-max(_KEPT, len(shared)) :], bodies


def _tell(how: str, fresh: dict[str, bytes], order: list[str]) -> None:
    """Say to all what comes next, and what they keep for it."""
    _team.known = dict.fromkeys(order)
    _broadcast(pickle.dumps((how, fresh, order)))


class _Pickler(pickle.Pickler):
    """Leaves out what is shared, and takes tensors of a GPU as they are on the CPU."""

    def __init__(self, file: io.BytesIO, shared: dict[str, Any] | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.shared, self.keys = shared, dict[int, str]()

    def persistent_id(self, value: Any) -> str | None:
        if self.shared is None or not hasattr(type(value), "shared_key"):
            return None
        if id(value) not in self.keys:
            self.keys[id(value)] = str(value.shared_key())
        self.shared[self.keys[id(value)]] = value
        return self.keys[id(value)]

    def reducer_override(self, value: Any) -> Any:
        import torch

        if type(value) is torch.Tensor and value.device.type not in ("cpu", "meta"):
            return _placed, (value.detach().cpu(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: dict[str, Any]) -> None:
        super().__init__(file)
        self.known = known

    def persistent_load(self, key: str) -> Any:
        return self.known[key]


def _pickled(value: Any, shared: dict[str, Any] | None) -> bytes:
    file = io.BytesIO()
    _Pickler(file, shared).dump(value)
    return file.getvalue()


def _unpacked(content: bytes, known: dict[str, Any]) -> Any:
    return _Unpickler(io.BytesIO(content), known).load()


def _placed(values: torch.Tensor) -> torch.Tensor:
    """A tensor of another process's GPU, on the one of this process."""
    return values.to(_team.device)


@contextmanager
def _busy() -> Iterator[None]:
    before, _team.busy = _team.busy, True
    try:
        yield
    finally:
        _team.busy = before


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises
        _team.broken = True
        raise WeightsmithError(
            "another process of this job is gone: what it wrote stands above; start all of them again with --resume to go on"
        ) from error


def _broadcast(content: bytes) -> bytes:
    """The bytes of process 0, in every process."""
    import torch
    import torch.distributed as dist

    length = torch.tensor([len(content)])
    dist.broadcast(length, 0, group=_team.group)
    values = _tensor(content, int(length))
    for piece in torch.split(values, _PIECE):
        dist.broadcast(piece, 0, group=_team.group)
    return values.numpy().tobytes()


def _send(content: bytes, rank: int) -> None:
    import torch
    import torch.distributed as dist

    dist.send(torch.tensor([len(content)]), rank, group=_team.group)
    for piece in torch.split(_tensor(content, len(content)), _PIECE):
        dist.send(piece, rank, group=_team.group)


def _received(rank: int) -> bytes:
    import torch
    import torch.distributed as dist

    length = torch.tensor([0])
    dist.recv(length, rank, group=_team.group)
    values = _tensor(b"", int(length))
    for piece in torch.split(values, _PIECE):
        dist.recv(piece, rank, group=_team.group)
    return values.numpy().tobytes()


def _tensor(content: bytes, length: int) -> torch.Tensor:
    """Bytes as a tensor, or room for so many."""
    import torch

    if not content:
        return torch.empty(length, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
