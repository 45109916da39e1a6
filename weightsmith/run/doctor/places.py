"""Folders, disks, and the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from weightsmith.files import cause_of
from weightsmith.run.doctor.check import Check

LEAST, ENOUGH = 200 * 10**6, 5 * 10**9
"""Free bytes below which commands fail, and below which a large model soon will."""

_HUB = "https://huggingface.co"
_SECONDS = 5.0
"""How long the files of a folder are counted."""


def cache(folder: Path) -> Check:
    """The cache: whether it can be written, and how much it holds."""
    name = "cache"
    why = _unwritable(folder)
    if why:
        remedy = "give another with --cache-dir or $WEIGHTSMITH_CACHE, or change its rights"
        return Check(name=name, state="broken", found=f"{folder} cannot be written ({why})", remedy=remedy)
    size, whole = size_of(folder)
    told = f"{folder} holds {'' if whole else 'more than '}{size / 1e9:.2f} GB"
    if size > 50 * 10**9:
        return Check(name=name, state="slow", found=told, remedy="remove what is old: all of it can be made again")
    return Check(name=name, state="fine", found=told)


def runs(folder: Path) -> Check:
    """Where run folders go."""
    why = _unwritable(folder)
    if why:
        remedy = "give another with --runs-dir, or change its rights"
        return Check(name="runs", state="broken", found=f"{folder} cannot be written ({why})", remedy=remedy)
    return Check(name="runs", state="fine", found=f"{folder.absolute()} can be written")


def disk(folder: Path, what: str) -> Check:
    """Space on the disk that holds a folder, or will hold it."""
    free = shutil.disk_usage(_there(folder)).free
    told = f"{free / 1e9:.1f} GB free for {what} ({folder})"
    remedy = "free some space, or give a folder on another disk"
    if free < LEAST:
        return Check(name=f"disk of {what}", state="broken", found=told, remedy=remedy)
    if free < ENOUGH:
        return Check(name=f"disk of {what}", state="slow", found=f"{told}: too little for large models", remedy=remedy)
    return Check(name=f"disk of {what}", state="fine", found=told)


def hub(seconds: float) -> Check:
    """Whether models can be fetched by their hub names; that they cannot is nothing broken."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        told = "offline, as HF_HUB_OFFLINE asks: only what is in its cache can be named"
        return Check(name="hub", state="fine", found=told)
    address = os.environ.get("HF_ENDPOINT", _HUB)
    said: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310  (the user's own address)
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                said.append("")
        except urllib.error.HTTPError:  # it answers, which is all that is asked
            said.append("")
        except urllib.error.URLError as error:
            said.append(str(error.reason))
        except Exception as error:  # a certificate, a name, a proxy: all mean that it is out of reach
            said.append(cause_of(error))

    # Looking a name up cannot be told to stop, so it is left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    why = said[0] if said else f"no answer in {seconds:g} s"
    if not why:
        return Check(name="hub", state="fine", found=f"{address} answers")
    remedy = "export HF_HUB_OFFLINE=1, so that nothing waits for it, and name models by their folders"
    return Check(name="hub", state="absent", found=f"{address} is out of reach ({why})", remedy=remedy)


def size_of(folder: Path) -> tuple[int, bool]:
    """(bytes of the files in a folder, whether all were counted in the time there is)."""
    size, until = 0, time.monotonic() + _SECONDS
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it was removed meanwhile
                continue
        if time.monotonic() > until:
            return size, False
    return size, True


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there, "" where it can; a folder that is not there is judged by the one above it."""
    there = _there(folder)
    if not there.is_dir():
        return f"{there} is a file"
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
