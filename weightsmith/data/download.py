"""The known MedMNIST sets, and fetching one: resumed, checked, and in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import CHUNK, cause_of, disk_is_full, move_into_place, user_path
from weightsmith.progress import progress

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "~/.medmnist"
"""Where MedMNIST's own tools look for the files too."""


@dataclass(frozen=True)
class KnownFile:
    """One published file: where it is fetched from and the MD5 (hex) of its bytes."""

    url: str
    md5: str


@dataclass(frozen=True)
class KnownSet:
    """Facts of one MedMNIST set; `files` goes by the side of its images in pixels, `n_samples` by part."""

    name: str
    task: str
    n_classes: int
    n_channels: int
    license: str
    class_names: tuple[str, ...]
    n_samples: dict[str, int]
    files: dict[int, KnownFile]

    def file_name(self, size: int) -> str:
        """The published name, which leaves out the smallest size: pathmnist.npz, pathmnist_224.npz."""
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"


@cache
def known_sets() -> dict[str, KnownSet]:
    """The table `medmnist_sets.toml`: two-dimensional sets with one label an image, by name."""
    text = resources.files("weightsmith.data").joinpath("medmnist_sets.toml").read_text(encoding="utf-8")
    return {
        name: KnownSet(
            name=name,
            task=row["task"],
            n_classes=row["n_classes"],
            n_channels=row["n_channels"],
            license=row["license"],
            class_names=tuple(row["class_names"]),
            n_samples=dict(row["n_samples"]),
            files={int(size): KnownFile(**file) for size, file in row["files"].items()},
        )
        for name, row in tomllib.loads(text).items()
    }


def known_file(path: Path) -> tuple[KnownSet, int] | None:
    """The set and image side that a file's name stands for: pathmnist_224.npz, pathmnist.npz; None for any other."""
    match = re.fullmatch(r"([a-z]+)(?:_(\d+))?", path.stem.lower())
    if match is None or match[1] not in known_sets():
        return None
    return known_sets()[match[1]], int(match[2] or 28)


def fetch_command(path: Path) -> str | None:
    """The command that fetches the published file of this name into this place; None where there is none."""
    known = known_file(path)
    if known is None or known[1] not in known[0].files:
        return None
    to = "" if path.parent == user_path(DEFAULT_FOLDER) else f" --to {path.parent}"
    return f"`weightsmith download {known[0].name} --size {known[1]}{to}`"


def download(
    name: str = "pathmnist",
    size: int = 224,
    to: str | Path = DEFAULT_FOLDER,
    *,
    url: str | None = None,
    md5: str | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch a MedMNIST set and return the path of its file; nothing is done when it is there already.

    What arrives is kept in `<file>.part`, from which an interrupted download goes on; the file gets its name only
    after its MD5 has been checked.

    Args:
        name: of the set, "pathmnist" say.
        size: side of the images in pixels: 28, 64, 128 or 224.
        to: folder that the file is put into.
        url: fetch from here instead, a mirror say.
        md5: expect this sum (hex) instead of the published one.
        timeout: seconds without a byte after which the server counts as gone.

    Raises:
        WeightsmithError: an unknown set or size, no connection, an answer that is no file, a full disk, a wrong sum.
    """
    known = _known_set(name.lower())
    if size not in known.files:
        sizes = ", ".join(str(known_size) for known_size in known.files)
        raise WeightsmithError(f"--size {size} of {known.name} does not exist: give one of {sizes}")
    url = url or known.files[size].url
    md5 = (md5 or known.files[size].md5).lower()
    target = user_path(to) / known.file_name(size)
    part = target.with_name(target.name + ".part")
    try:
        if target.exists():
            found = _md5(target)
            if found == md5:
                logger.info("%s is there already", target)
                return target
            raise WeightsmithError(
                f"{target} is there but its MD5 is {found} instead of {md5}: move or remove it, then download again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, timeout, f"fetch {url} (MD5 {md5}) on a machine with internet and place it at {target}")
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise WeightsmithError(
                f"the MD5 of {part} is {found} instead of {md5}, so what {url} sent was removed: download it again"
            )
        move_into_place(part, target)
    except OSError as error:
        raise _cannot_write(part, error) from error
    logger.info("%s is complete", target)
    return target


def _known_set(name: str) -> KnownSet:
    sets = known_sets()
    if name in sets:
        return sets[name]
    if name == "chestmnist":
        raise WeightsmithError(
            f"chestmnist is multi-label, which weightsmith does not support: choose one of {', '.join(sets)}"
        )
    if name.endswith("mnist3d"):
        raise WeightsmithError(
            f"{name} is three-dimensional, which weightsmith does not support: choose one of {', '.join(sets)}"
        )
    raise WeightsmithError(f"there is no MedMNIST set {name!r}: {did_you_mean(name, sets)}")


def _fetch(url: str, part: Path, timeout: float, by_hand: str) -> None:
    """Append what is missing to `part`. Raises `WeightsmithError` for the network, OSError for the disk."""
    have = part.stat().st_size if part.exists() else 0
    if not url.startswith(("https://", "http://")):
        raise WeightsmithError(f"{url!r} is no web address: give one that starts with https://")
    headers = {"User-Agent": "weightsmith"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme is checked above
    try:
        response = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not have:
                raise WeightsmithError(f"{url} answered {error.code} {error.reason}: {by_hand}") from error
            # Nothing lies beyond what is here: it is complete, unless the server names another length.
            length = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if length is not None and int(length[1]) != have:
            part.unlink()
            _fetch(url, part, timeout, by_hand)
        return
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WeightsmithError(f"{url} cannot be reached ({cause_of(error)}): {by_hand}") from error
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if resumed or response.status != 206:
            _append(response, part, have if resumed else 0, url, by_hand)
            return
    if not have:
        raise WeightsmithError(f"{url} sent a piece of the file instead of the whole: {by_hand}")
    part.unlink()  # the piece that came does not fit to it
    _fetch(url, part, timeout, by_hand)


def _append(response: http.client.HTTPResponse, part: Path, done: int, url: str, by_hand: str) -> None:
    length = response.headers.get("Content-Length", "")
    total = done + int(length) if length.isdecimal() else None
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - done > free:
        raise WeightsmithError(
            f"{part.parent} has {free / 2**30:.1f} GiB free and the download of {url} needs "
            f"{(total - done) / 2**30:.1f} GiB more: free space, or name another folder with --to"
        )
    received = done
    with open(part, "ab" if done else "wb") as file, progress(part.stem, total, done, of_bytes=True) as advance:
        for chunk in _received(response, part, url, by_hand):
            file.write(chunk)
            received += len(chunk)
            advance(len(chunk))
    if total is not None and received < total:
        raise WeightsmithError(
            f"{url} broke off after {received} of {total} bytes: run the download again, it goes on from {part}"
        )


def _received(response: http.client.HTTPResponse, part: Path, url: str, by_hand: str) -> Iterator[bytes]:
    """The body, piece by piece; what goes wrong here is the network's doing, not the disk's."""
    try:
        while chunk := response.read(CHUNK // 8):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise WeightsmithError(
            f"{url} broke off ({cause_of(error)}): run the download again, it goes on from {part}, or {by_hand}"
        ) from error


def _cannot_write(part: Path, error: OSError) -> WeightsmithError:
    if disk_is_full(error):
        return WeightsmithError(
            f"the disk of {part.parent} is full: free space and run the download again, "
            f"it goes on from {part}, or name another folder with --to"
        )
    return WeightsmithError(f"{part} cannot be written ({cause_of(error)}): name another folder with --to")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # a check against accidents; it is the sum that is published
    with open(path, "rb") as file, progress(f"check {path.name}", os.path.getsize(path), of_bytes=True) as advance:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
