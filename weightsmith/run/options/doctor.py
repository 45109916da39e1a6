"""The options of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Look at this machine: what is broken, what would be slow, what is not installed, and a remedy for each."""

    cache_dir: str | None = None
    """Where key statistics and unpacked data are kept [the platform's cache folder]."""
    runs_dir: str = "runs"
    """Where run folders lie."""
    timeout: float = 5.0
    """Seconds for which the hub may take to answer."""
