"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "broken", "slow", "absent"]
"""fine; broken: commands fail; slow: they work, but not as they could; absent: an optional part that is not there."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what; state: how it is; found: what was seen, in a sentence part.
        remedy: what to do about it, a command where there is one; "" where there is nothing to do.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
