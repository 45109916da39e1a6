"""What the documentation's builder must know of our docstrings: attributes may be named together, `views, view: ...`."""

from __future__ import annotations

import re
from typing import Any

import griffe

TOGETHER = re.compile(r"^ {4}\w+(?:, \w+)+(?=: )", re.MULTILINE)
"""Names before a colon, one level in, as in a section of a docstring."""


class NamesTogether(griffe.Extension):
    """Joins such names by spaces that do not break: at a plain one griffe takes the rest for a type."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called for each object that was read."""
        if obj.docstring:
            obj.docstring.value = TOGETHER.sub(lambda names: names[0].replace(", ", ",\u00a0"), obj.docstring.value)
