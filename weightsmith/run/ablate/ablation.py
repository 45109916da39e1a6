"""What every ablation is: an editor on a bench, trials of its settings, and what they come to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith import __version__
from weightsmith.edit.preserved import Preserved
from weightsmith.files import user_path
from weightsmith.report.words import number
from weightsmith.request import Request
from weightsmith.run.ablate.trials import Setting, Trial
from weightsmith.run.cells import key_of
from weightsmith.run.compare.benches import ImageBench, TextBench
from weightsmith.run.compare.draws import Plan
from weightsmith.run.options.ablate import AblateOptions

Rows = list[dict[str, object]]


@dataclass(frozen=True, eq=False)
class Ablated:
    """What an ablation came to.

    Attributes:
        tables: name of a CSV file → its rows; figures: name → figure.
        summary: sentences for people; shown: the main table for the terminal.
    """

    tables: Mapping[str, Rows]
    figures: Mapping[str, Figure]
    summary: Sequence[str]
    shown: Table


@dataclass(eq=False)
class Ablation(ABC):
    """Trials of one editor.

    Attributes:
        options: as they were typed; bench: what is measured on; plan: what is fixed of it.
        place: the folder of the trials' files.
    """

    options: AblateOptions
    bench: TextBench | ImageBench
    plan: Plan
    place: Path
    _keeping: dict[int, Preserved] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.options.edit_method[0]

    @property
    def cache_dir(self) -> Path | None:
        return user_path(self.options.cache_dir) if self.options.cache_dir else None

    def requests(self, seed: int) -> Sequence[Request]:
        """What is edited."""
        return self.bench.draws[seed][: self.options.max_edits]

    def keeping(self, seed: int) -> Preserved:
        """What the editor preserves meanwhile."""
        if seed not in self._keeping:
            self._keeping[seed] = self.bench.keeping(self.requests(seed))
        return self._keeping[seed]

    def depends(self, setting: Setting) -> str:
        """SHA-256 of everything that a trial depends on."""
        seed = int(setting["seed"])
        return key_of(
            {
                "version": __version__,
                "model": self.plan.fingerprint,
                "method": [self.method, self.plan.methods[self.method]],
                "requests": [content for _, content in self.plan.draws[seed]],
                "preserve": self.plan.preserve,
                **self.bench.depends(),
                "setting": dict(setting),
                **self.beside(),
            }
        )

    @abstractmethod
    def beside(self) -> dict[str, Any]:
        """What every trial depends on besides its setting and the bench."""

    @abstractmethod
    def settings(self) -> list[Setting]:
        """The trials, in the order in which they are measured."""

    @abstractmethod
    def measure(self, setting: Setting) -> Trial:
        """A trial, without its key. Raises `WeightsmithError` where it cannot be measured."""

    @abstractmethod
    def ablated(self, trials: Sequence[Trial]) -> Ablated:
        """What the trials, in the order of `settings`, come to."""


def terminal_table(title: str, rows: Rows, words: Mapping[str, str], shares: Mapping[str, str]) -> Table:
    """Some columns of the rows for people, under headings that leave them room: words as they are, shares in percent.

    A column in which all words are the same, such as the seed of a single draw, is left out.
    """
    words = {name: heading for name, heading in words.items() if len({str(row[name]) for row in rows}) > 1}
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (*words.values(), *shares.values()):
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows:
        values = [number(row[name]) for name in shares]
        told = ["-" if value != value else f"{100 * value:.1f}" for value in values]
        table.add_row(*(Text(str(row[name])) for name in words), *told)
    return table
