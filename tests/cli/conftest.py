"""The command line, run in this process."""

from __future__ import annotations

from tests.run.conftest import tiny, weightsmith

__all__ = ["tiny", "weightsmith"]
