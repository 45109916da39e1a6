"""What a user is told when something is wrong: one sentence that names the flag or file, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightsmithError(Exception):
    """Bad input or a bad state; its text is one sentence for the user, and the command line prints nothing else."""


class HeldOutError(WeightsmithError):
    """Held-out data was asked for outside an evaluation."""


class UnknownArchitectureError(WeightsmithError):
    """No family table describes this network."""


class WrongWeightsError(WeightsmithError):
    """A delta or a cache entry was made for other weights."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence part that lists the known names and, where one is close, proposes it.

    >>> did_you_mean("alphaedti", ["alphaedit", "head"])
    "did you mean 'alphaedit'? known: alphaedit, head"
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    listing = f"known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listing}" if close else listing
