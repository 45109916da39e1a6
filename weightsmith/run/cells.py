"""A comparison's cells: one batch of edits with one method on the unedited model, each kept in a file when it is measured."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.files import DAMAGED, disk_is_full, write_json
from weightsmith.measure import Interval
from weightsmith.measure.intervals import NOTHING

_log = logging.getLogger(__name__)

FORMAT = "weightsmith-cell-1"


@dataclass(frozen=True)
class Cell:
    """What one batch of edits came to.

    Attributes:
        method, batch_size, seed: which cell it is.
        key: SHA-256 of everything that it depends on.
        measures: name → value with its interval; of a cell that failed none.
        seconds: of the solve; update_norm: of the change; reached: share of the edits that give the wanted answer.
        error: why it failed, "" where it did not.
    """

    method: str
    batch_size: int
    seed: int
    key: str
    measures: dict[str, Interval] = field(default_factory=dict)
    seconds: float = math.nan
    update_norm: float = math.nan
    reached: float = math.nan
    error: str = ""

    def save(self, folder: Path) -> None:
        """Write the cell to its file in a folder, atomically."""
        write_json(folder / self.file, {"format": FORMAT, **stored(asdict(self)), "measures": as_lists(self.measures)})

    @property
    def file(self) -> str:
        return file_of(self.method, self.batch_size, self.seed)

    @classmethod
    def load(cls, path: Path, key: str) -> Cell | None:
        """The cell of this key in a file; None where there is none, or another one, or a damaged one."""
        if not path.is_file():
            return None
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if entries.pop("format") != FORMAT or entries["key"] != key:
                _log.info("%s was measured with something else and is measured again", path.name)
                return None
            measures = of_lists(entries["measures"])
            numbers = {name: number_of(entries[name]) for name in ("seconds", "update_norm", "reached")}
            return cls(**entries | numbers | {"measures": measures})
        except DAMAGED as error:
            _log.warning("%s is damaged and measured again: %s", path, error)
            return None

    def row(self, names: Sequence[str]) -> dict[str, object]:
        """The row of `baseline_comparison.csv`; "" stands for what is unknown."""
        row: dict[str, object] = {"method": self.method, "batch_size": self.batch_size, "seed": self.seed}
        row |= columns(names, self.measures)
        row |= {name: told(getattr(self, name)) for name in ("reached", "seconds", "update_norm")}
        return row | {"error": self.error}


def file_of(method: str, batch_size: int, seed: int) -> str:
    """The name of a cell's file."""
    return f"{method}-{batch_size}-{seed}.json"


def key_of(depends: dict[str, Any]) -> str:
    """SHA-256 of what a cell depends on."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=list).encode()).hexdigest()


def columns(names: Sequence[str], measures: Mapping[str, Interval]) -> dict[str, object]:
    """Three columns of a CSV file for each name: value, low and high; "" stands for what is unknown."""
    return {
        f"{name}{end}": told(value)
        for name in names
        for one in (measures.get(name, NOTHING),)
        for end, value in (("", one.value), ("_low", one.low), ("_high", one.high))
    }


def told(value: float) -> object:
    """A number as a CSV file has it."""
    return "" if math.isnan(value) else round(value, 6)


def as_lists(measures: Mapping[str, Interval]) -> dict[str, Any]:
    """Measures as JSON; `of_lists` reads them."""
    return {name: stored([one.value, one.low, one.high, one.n]) for name, one in measures.items()}


def of_lists(measures: Mapping[str, Sequence[Any]]) -> dict[str, Interval]:
    """What `as_lists` told. Raises `ValueError` or `TypeError` for anything else."""
    return {
        name: Interval(number_of(value), number_of(low), number_of(high), int(n))
        for name, (value, low, high, n) in measures.items()
    }


def number_of(value: object) -> float:
    """A number that `stored` told."""
    return math.nan if value is None else float(str(value))


def stored(value: Any) -> Any:
    """JSON knows no NaN: null stands for it, and infinity is a text."""
    if isinstance(value, dict):
        return {name: stored(one) for name, one in value.items()}
    if isinstance(value, list):
        return [stored(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@contextmanager
def failures(errors: list[str]) -> Iterator[None]:
    """Keep why a cell cannot be measured. A full disk, or held-out data asked for too early, ends the whole."""
    try:
        yield
    except HeldOutError:
        raise
    except WeightsmithError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) or (isinstance(cause, Exception) and disk_is_full(cause)):
            raise
        errors.append(str(error))
