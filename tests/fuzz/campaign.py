"""Damaged files read one after another: each reads well or ends in one sentence."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import mutated
from tests.fuzz.readers import Reader, fresh
from weightsmith.errors import WeightsmithError

SECONDS = 20
"""What a reader may take for one small file."""


@dataclass(frozen=True)
class Crash:
    """What a reader made of one input instead of an answer.

    Attributes:
        reader: its name; seed, number: of the input, by which it is made again.
        what: the traceback, or what is wrong with the sentence.
        content: the damaged file.
    """

    reader: str
    seed: int
    number: int
    what: str
    content: bytes

    @property
    def where(self) -> str:
        """The last line of ours in the traceback, by which crashes are told apart."""
        ours = [
            line.strip()
            for line in self.what.splitlines()
            if "weightsmith/" in line and line.lstrip().startswith("File")
        ]
        return f"{self.reader}: {ours[-1] if ours else ''} {self.what.strip().splitlines()[-1][:160]}"


@dataclass
class Tally:
    """How many inputs there were, and how many of them were refused."""

    inputs: int = 0
    refused: int = 0


def campaign(reader: Reader, seed: int, count: int, folder: Path, tally: Tally) -> Iterator[Crash]:
    """Read `count` damaged files; yield each that crashed its reader."""
    path, good = fresh(reader, folder)
    reader.reads(path)
    for number in range(count):
        content = reader.seals(mutated(good, random.Random(f"{reader.name}/{seed}/{number}")))
        path.write_bytes(content)
        tally.inputs += 1
        what = tried(reader, path)
        if what == "":
            continue
        if what is None:
            tally.refused += 1
            continue
        yield Crash(reader.name, seed, number, what, content)
        path, good = fresh(reader, folder)


def tried(reader: Reader, path: Path) -> str | None:
    """ "" where it reads, None where it is refused in a sentence, else what went wrong."""
    try:
        with _in_time():
            reader.reads(path)
    except WeightsmithError as error:
        told = str(error)
        if "\n" in told.strip() or not told.strip() or len(told) > 2000:
            return f"no sentence: {told!r}"
        return None
    except BaseException as error:  # what is no WeightsmithError would reach a user as a traceback
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    return ""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Ends in TimeoutError after `SECONDS`, where signals can do that."""
    if os.name != "posix":
        yield
        return

    def stop(signal_: int, frame: object) -> None:
        raise TimeoutError(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
