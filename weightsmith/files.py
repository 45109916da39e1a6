"""Files that are either whole or absent: every write of the library goes through here."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from weightsmith.errors import WeightsmithError, near_path

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_CAUSE = 300
"""Characters of another library's words in a sentence: some of them quote what they read."""
_SENSELESS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
DAMAGED = (OSError, *_SENSELESS)
"""What reading a file of JSON, and taking it apart, ends in where it is damaged or of another kind."""
CHUNK = 2 * 2**20
"""Bytes moved at a time when a file is streamed."""

_FULL = ("No space left", "unexpected pos", "failed writing file", "iostream error")
"""Words of safetensors and of torch.save."""

_ABANDONED_AFTER = 24 * 3600
"""Seconds after which nobody is writing a temporary file any more."""

_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[^.]+\.(?P<what>tmp|old)", re.DOTALL)

_WRITTEN: ContextVar[list[Path] | None] = ContextVar("written", default=None)
"""Where the targets of writes are noted, while somebody wants to know."""


@contextmanager
def recorded() -> Iterator[list[Path]]:
    """Yield a list that files and folders join, in their order, when they are written while the block runs."""
    written: list[Path] = []
    token = _WRITTEN.set(written)
    try:
        yield written
    finally:
        _WRITTEN.reset(token)


def _note(target: Path) -> None:
    written = _WRITTEN.get()
    if written is not None:
        written.append(target)


def default_cache_dir() -> Path:
    """The folder of everything that can be made again: $WEIGHTSMITH_CACHE, else the platform's cache folder."""
    chosen = os.environ.get("WEIGHTSMITH_CACHE")
    return user_path(chosen) if chosen else platformdirs.user_cache_path("weightsmith")


def user_path(path: str | Path) -> Path:
    """The path with a leading ~ resolved; unlike `Path.expanduser` it leaves an unknown user's ~name as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; afterwards the file is at `target`, whole, or nowhere.

    The name is unique, so processes that write the same target do not meet: the last one to finish wins.
    Folders above the target are made. Any exception, an interrupt included, removes the temporary file.

    Raises:
        OSError: the folder cannot be made, or the file cannot be moved into place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_stem(target)}{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        move_into_place(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _note(target)


def move_into_place(written: Path, target: Path) -> None:
    """Rename a finished file to its target in the same folder, such that a power cut leaves the old or the new one."""
    with open(written, "rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(written, target)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """`replacing`, with a full disk or a folder that cannot be written told as a `WeightsmithError`."""
    with explained(Path(target)), replacing(Path(target)) as temporary:
        yield temporary


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Like `atomic_path` for a folder: the old one, if any, is replaced only when the new one is complete.

    What processes that were killed while they wrote this folder have left is removed before.
    """
    target = Path(target)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_stem(target), suffix=".tmp"))
        old = temporary.with_suffix(".old")
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
            remove(old)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _note(target)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written below a folder that this process has for itself."""
    for left in sorted(folder.rglob(".*.tmp")):
        remove(left)
    for old in sorted(folder.rglob(".*.old")):
        found = _LEFT.fullmatch(old.name)
        if found:
            _put_back(old, old.with_name(found["name"]))


def remove_leftovers_of(target: Path) -> None:
    """Remove what killed processes of this machine left half-written of a file or folder that others may be writing as well.

    A folder that one of them had moved aside, and not replaced yet, comes back.
    """
    for left in sorted(target.parent.glob(".*.*")):
        found = _LEFT.fullmatch(left.name)
        if found is None or found["machine"] != _MACHINE or _lives(int(found["process"])):
            continue
        name = found["name"]
        while inner := _LEFT.fullmatch(name):  # a temporary file that was itself written by way of one
            name = inner["name"]
        if name != target.name:
            continue
        if found["what"] == "old":
            _put_back(left, target)
        else:
            remove(left)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that others may be writing to: what is a day old."""
    for left in folder.glob(".*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                remove(left)
        except OSError:
            continue  # its owner was faster, or it is not ours to remove


def write_text(target: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Write JSON atomically, keys in the given order."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(target: Path | str, rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV atomically; `columns` gives the header when there may be no rows."""
    names = list(columns) if columns is not None else list(rows[0])
    with atomic_path(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """The rows of a CSV file as text."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone, for use inside `atomic_path` or `atomic_folder`.

    safetensors itself writes several entries of metadata in an order that differs from process to process.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=dict(metadata))
    with path.open("rb+") as file:
        room = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(room))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > room:
            raise ValueError(f"the header of {path} does not fit into its {room} bytes")
        file.seek(8)
        file.write(text.ljust(room))


def write_tensors(target: Path | str, tensors: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Write a safetensors file that `read_tensors` reads, atomically; `header` has JSON values, "format" among them."""
    from safetensors.torch import save_file  # brings torch along, which a command's help does without

    with atomic_path(target) as temporary:
        save_file(dict(tensors), temporary, metadata={"weightsmith": json.dumps(header)})


def read_tensors(path: Path | str, wanted: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and tensors of a safetensors file of ours.

    Raises:
        WeightsmithError: naming the file, when it is missing, damaged, or of another format than `wanted`.
    """
    header, tensors = any_tensors(path)
    found = header.get("format", "another safetensors file")
    if found != wanted:
        raise WeightsmithError(f"{path} is no {wanted} file but {found!r}: check the path")
    return header, tensors


def any_tensors(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header, empty where the file is not ours, and tensors of any safetensors file.

    Raises:
        WeightsmithError: naming the file, when it is missing or damaged.
    """
    from safetensors import safe_open  # brings torch along, which a command's help does without

    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for a name that no disk can have
        raise WeightsmithError(
            f"{path} does not exist: check the path, or run the stage that writes it{near_path(path)}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("weightsmith", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors raises its own type for a damaged file; all of them mean the same here
        raise WeightsmithError(f"{path} is damaged or no safetensors file ({error}): write it again") from error
    return header if isinstance(header, dict) else {}, tensors


def as_bytes(tensor: Tensor) -> Tensor:
    """(n,) uint8, the bytes of a tensor's numbers in their order, on the CPU; a view of them where they lie so."""
    import torch

    flat = tensor.detach().cpu().reshape(-1).contiguous()
    if flat.stride() != (1,):  # one number alone may lie at any stride, which torch calls contiguous and cannot view
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


@contextmanager
def understood(path: Path | str, remedy: str = "write it again") -> Iterator[None]:
    """Turn what entries that are missing or of another kind make Python raise into a `WeightsmithError` that names the file.

    To stand around the few lines that take a file's content apart, and around nothing that computes.
    """
    try:
        yield
    except (*_SENSELESS, RuntimeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else cause_of(error)
        raise WeightsmithError(f"{path} is damaged ({what}): {remedy}") from error


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn an OSError of writing `target` into a `WeightsmithError` that says what to do."""
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise WeightsmithError(
                f"{target} cannot be written, because the disk that holds it is full: free some space, or choose another "
                "disk (--runs-dir, --cache-dir, --out), and run the command again; nothing was half-written"
            ) from error
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise WeightsmithError(f"{target} cannot be written: choose another folder or change its rights") from error
        raise


def _stem(target: Path) -> str:
    """How the names of temporary files begin: they say what is written, and by which process of which machine."""
    return f".{target.name}.{_MACHINE}-{os.getpid()}-"


def _put_back(old: Path, target: Path) -> None:
    """What was moved aside for a new folder that never came."""
    if target.exists():
        remove(old)
    else:
        os.replace(old, target)


def _lives(process: int) -> bool:
    """Whether a process of this machine is still there; True where that cannot be known."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def disk_is_full(error: Exception) -> bool:
    """Whether this failure means that no space, or no quota, is left."""
    full = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quota
    if isinstance(error, OSError):
        return error.errno in full
    # The libraries below safetensors and torch.save tell of it in words, in exceptions of their own.
    signs = (
        *(f"os error {number}" for number in full),
        "No space left",
        "unexpected pos",
        "failed writing file",
        "iostream error",
    )
    return any(sign in str(error) for sign in signs)


def cause_of(error: BaseException) -> str:
    """The first line of an exception's text, to stand inside a sentence."""
    lines = str(error).strip().splitlines()
    first = lines[0].rstrip(".") if lines else type(error).__name__
    return first if len(first) <= _LONGEST_CAUSE else f"{first[:_LONGEST_CAUSE]}…"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
