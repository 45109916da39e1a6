"""Names that this process cannot hand on: the libraries that read and write models know file names in UTF-8 alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from weightsmith.errors import WeightsmithError


def check_names(given: Sequence[str]) -> None:
    """Raise `WeightsmithError` for words, or a working folder, that cannot be told to every library as they are meant."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed meanwhile, which what needs it will say
        here = ""
    told = [*given, here]
    broken = [word for word in told if any("\udc80" <= sign <= "\udcff" for sign in word)]
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8":
        broken += [word for word in told if not word.isascii()]
        remedy = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        if broken:
            raise WeightsmithError(
                f"{broken[0]!r} cannot be used where the locale's encoding is {sys.getfilesystemencoding()}: {remedy}"
            )
    if broken:
        raise WeightsmithError(f"{broken[0]!r} is no text in UTF-8: rename the file or folder, or type the name again")
