"""What a user is told when something is wrong: one sentence that names the flag or file, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class WeightsmithError(Exception):
    """Bad input or a bad state; its text is one sentence for the user, and the command line prints nothing else.

    What it quotes of files and flags may hold anything: characters that would break the line or steer a terminal are written
    as escapes.
    """

    def __init__(self, told: str) -> None:
        super().__init__("".join(one if one.isprintable() else _escaped(one) for one in told))


class HeldOutError(WeightsmithError):
    """Held-out data was asked for outside an evaluation."""


class UnknownArchitectureError(WeightsmithError):
    """No family table describes this network."""


class WrongWeightsError(WeightsmithError):
    """A delta or a cache entry was made for other weights."""


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one is meant to be, None where none is near."""
    names = list(known)
    alike = {one.lower(): one for one in names}
    found = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(name.lower(), list(alike), n=1)
    return alike.get(found[0], found[0]) if found else None


def perhaps(name: str, known: Iterable[str]) -> str:
    """A sentence part that ends a message with the known name that was meant; "" where none is near.

    >>> perhaps("brids", ["birds", "cars"])
    "; did you mean 'birds'?"
    """
    found = closest(name, known)
    return f"; did you mean {found!r}?" if found and found != name else ""


def near_path(path: Path) -> str:
    """A sentence part that proposes what lies where a file or folder is not, and has nearly its name; "" where none does.

    >>> near_path(Path("no/such/place"))
    ''
    """
    place = path
    while not place.parent.is_dir() and place != place.parent:
        place = place.parent
    try:
        there = [one.name for one in place.parent.iterdir() if not one.name.startswith(".")]
    except OSError:
        return ""
    found = closest(place.name, there)
    return f"; did you mean {str(place.parent / found)!r}?" if found and found != place.name else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence part that lists the known names and, where one is close, proposes it.

    >>> did_you_mean("alphaedti", ["alphaedit", "head"])
    "did you mean 'alphaedit'? known: alphaedit, head"
    """
    names = list(known)
    close = closest(name, names)
    listing = f"known: {', '.join(names)}"
    return f"did you mean {close!r}? {listing}" if close else listing
