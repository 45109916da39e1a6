"""An ablation's trials: one setting on one draw of requests, each kept in a file when it is measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from weightsmith.files import DAMAGED, write_json
from weightsmith.measure import Interval
from weightsmith.run.cells import as_lists, columns, number_of, of_lists, stored, told
from weightsmith.run.spread import Failure, Settings, Sweep, each, kept_failure
from weightsmith.run.spread import Measure as MeasureCell

_log = logging.getLogger(__name__)

FORMAT = "weightsmith-trial-1"

Setting = Mapping[str, str | int | float]
"""What tells a trial from the others: column → value, "" where a column says nothing of it."""


@dataclass(frozen=True)
class Trial:
    """What one setting came to.

    Attributes:
        setting: which trial it is.
        key: SHA-256 of everything that it depends on.
        measures: name → value with its interval; of a trial that failed none.
        numbers: name → number that has no interval.
        held: of a stream, after each batch a list with (edits, those that hold) of each batch so far; else empty.
        error: why it failed, "" where it did not.
    """

    setting: Setting
    key: str = ""
    measures: Mapping[str, Interval] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    held: Sequence[Sequence[tuple[int, int]]] = ()
    error: str = ""

    def save(self, folder: Path) -> None:
        """Write the trial to its file in a folder, atomically."""
        entries = {
            "setting": dict(self.setting),
            "key": self.key,
            "measures": as_lists(self.measures),
            "numbers": stored(dict(self.numbers)),
            "held": [[list(pair) for pair in after] for after in self.held],
            "error": self.error,
        }
        write_json(folder / file_of(self.setting), {"format": FORMAT, **entries})

    @classmethod
    def load(cls, path: Path, key: str) -> Trial | None:
        """The trial of this key in a file; None where there is none, or another one, or a damaged one."""
        if not path.is_file():
            return None
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if entries["format"] != FORMAT or entries["key"] != key:
                _log.info("%s was measured with something else and is measured again", path.name)
                return None
            return cls(
                setting=dict(entries["setting"]),
                key=key,
                measures=of_lists(entries["measures"]),
                numbers={
                    name: value if isinstance(value, int) else number_of(value)  # a count stays one
                    for name, value in entries["numbers"].items()
                },
                held=[[(int(edits), int(held)) for edits, held in after] for after in entries["held"]],
                error=str(entries["error"]),
            )
        except DAMAGED as error:
            _log.warning("%s is damaged and measured again: %s", path, error)
            return None

    def row(self, measures: Sequence[str], numbers: Sequence[str]) -> dict[str, object]:
        """A row of a CSV file: the setting, each measure with its bounds, each number; "" stands for what is unknown."""
        found: dict[str, object] = dict(self.setting)
        found |= columns(measures, self.measures)
        found |= {name: told(self.numbers.get(name, float("nan"))) for name in numbers}
        return found | {"error": self.error}


class Measure(Protocol):
    """What an ablation knows of its trials."""

    def depends(self, setting: Setting) -> str:
        """SHA-256 of everything that a trial depends on."""
        ...

    def measure(self, setting: Setting) -> Trial:
        """A trial, without its key. Raises `WeightsmithError` where it cannot be measured."""
        ...


def file_of(setting: Setting) -> str:
    """The name of a trial's file."""
    return "-".join(str(value) for value in setting.values() if value != "") + ".json"


def titled(setting: Setting) -> str:
    """A trial in words: "requests, rate 0.5, buffer size 20, random, seed 0"."""
    words = (
        value if isinstance(value, str) else f"{name.replace('_', ' ')} {value:g}"
        for name, value in setting.items()
        if value != ""
    )
    return ", ".join(words)


def run_trials(
    ablation: Measure, settings: Sequence[Setting], place: Path, make: Callable[[], MeasureCell], spread: Settings
) -> list[Trial]:
    """Every trial, in the order of the settings; those that are in the folder already are not measured again.

    Trials that failed are measured again.

    Args:
        make, spread: as `weightsmith.run.spread.Sweep` and `each` take them.
    """
    keys = [ablation.depends(setting) for setting in settings]
    known = [Trial.load(place / file_of(setting), key) for setting, key in zip(settings, keys, strict=True)]
    found = {n: trial for n, trial in enumerate(known) if trial is not None and not trial.error}
    waiting = [n for n in range(len(settings)) if n not in found]
    if found:
        _log.info("%d of %d trials are measured already", len(found), len(settings))
    sweep = Sweep(
        cells=[settings[n] for n in waiting],
        titles=[titled(settings[n]) for n in waiting],
        measure=ablation.measure,
        make=make,
        called="trial",
    )
    for number, measured in each(sweep, spread):
        n = waiting[number]
        failure = measured if isinstance(measured, Failure) else None
        trial = Trial(settings[n], error=failure.why) if failure is not None else measured
        found[n] = trial = replace(trial, key=keys[n])
        trial.save(place)
        kept_failure(place / file_of(settings[n]), failure)
    return [found[n] for n in range(len(settings))]
