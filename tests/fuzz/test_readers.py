"""Readers refuse damaged files in a sentence. `benchmarks/faults/fuzz.py` does the same with a hundred thousand."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from tests.fuzz.campaign import Tally, campaign, tried
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import READERS, Reader, fresh

INPUTS = 60
"""A reader; divided by what it costs."""


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_read_well_or_are_refused_in_a_sentence(reader: Reader, tmp_path: Path) -> None:
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, on what they read
        crashes = list(campaign(reader, 0, max(3, INPUTS // reader.costs), tmp_path / "files", tally))
    assert not crashes, f"{crashes[0].number}: {crashes[0].what}"
    assert tally.refused > 0


def test_what_crashes_is_found() -> None:
    """The campaign itself: an exception of any other kind, or words of several lines, are crashes."""
    from weightsmith.errors import WeightsmithError

    def raises(error: BaseException) -> Reader:
        def read(path: Path) -> None:
            raise error

        return Reader("any", lambda folder: folder, read)

    assert "KeyError" in str(tried(raises(KeyError("gone")), Path()))
    assert "SystemExit" in str(tried(raises(SystemExit(1)), Path()))
    assert "no sentence" in str(tried(raises(WeightsmithError("")), Path()))
    assert tried(raises(WeightsmithError("x is damaged: write it again")), Path()) is None


def test_inputs_follow_from_their_seed(tmp_path: Path) -> None:
    for reader in READERS[:2]:
        _, good = fresh(reader, tmp_path / "files")
        assert mutated(good, random.Random("a")) == mutated(good, random.Random("a"))
        assert len({mutated(good, random.Random(str(number))) for number in range(50)}) > 40


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    from weightsmith.errors import WeightsmithError

    told = str(WeightsmithError("a\nb\x1b[31m\u202e is no class: give “ä”"))
    assert told == "a\\nb\\x1b[31m\\u202e is no class: give “ä”"
