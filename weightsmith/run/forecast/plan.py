"""A plan: the steps of a command with what each costs, and how it is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith import mapped, ranks
from weightsmith.models.paged import DISK
from weightsmith.run.options.spread import SpreadOptions
from weightsmith.run.outcome import Outcome

KEPT = 64 * 2**20
"""Bytes that C's allocator keeps of what was freed: pieces above 32 MB go back at once, smaller ones where none is behind."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that would be done.

    Attributes:
        name: in a word or two; what: in a sentence part.
        forwards: block forwards, a backward pass counted as two of them.
        seconds: how long it takes on this machine.
        memory: bytes that it needs at a time beside the weights: activations, pieces, statistics, optimizer.
        stays: bytes of objects of Python that it leaves: figures, mostly.
        there: whether it is there already, and would be skipped.
    """

    name: str
    what: str
    forwards: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    stays: int = 0
    there: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command would do.

    Attributes:
        command: its name.
        steps: in their order.
        folder: what it would fill, as far as that is known.
        weights: bytes of the networks that are in memory throughout; held: of data that are.
        spread: who measures the cells, of a command that has some.
        notes: what is a bound or a guess, and how the time was estimated.
    """

    command: str
    steps: Sequence[Step]
    folder: Path | None = None
    weights: int = 0
    held: int = 0
    spread: SpreadOptions | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def waiting(self) -> list[Step]:
        """The steps that would be done."""
        return [step for step in self.steps if not step.there]

    @property
    def forwards(self) -> float:
        return sum(step.forwards for step in self.waiting)

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.waiting)

    @property
    def memory(self) -> int:
        """Bytes at a time, of all processes on this machine together; what Python itself holds is not counted."""
        # Each worker has networks and data of its own; this process has read both as well.
        workers = self._jobs if self._jobs > 1 else 0
        return self.each * (1 + workers) * _on_this_machine()

    @property
    def each(self) -> int:
        """Bytes at a time of one process: weights, data, the largest need of a step, what is left of others.

        Python's objects and what numbers are computed in come from different allocators, and C's keeps what was freed in
        small pieces. So what was needed for a computation is still there when figures are drawn, up to `KEPT`.
        """
        most = max((step.memory for step in self.waiting), default=0)
        stays = sum(step.stays for step in self.waiting)
        return self.weights + self.held + max(most, min(most, KEPT) + stays)

    @property
    def _jobs(self) -> int:
        """Processes of this machine that measure cells."""
        return self.spread.jobs or 1 if self.spread is not None and self.spread.backend == "processes" else 1

    def outcome(self) -> Outcome:
        """The plan as what the command came to."""
        there = len(self.steps) - len(self.waiting)
        skipped = f", {there} of them there already" if there else ""
        where = f" into {self.folder}" if self.folder is not None else ""
        told = (
            f"weightsmith {self.command} would do {len(self.steps)} steps{skipped}{where}: {self.forwards:,.0f} block "
            f"forwards, about {duration(self.seconds)}, {amount(self.memory)} of memory beside Python's own. Nothing was "
            "written."
        )
        notes = [*self.notes, *self._spread(), *self._short()]
        total = {name: getattr(self, name) for name in ("forwards", "seconds", "memory", "weights", "held")}
        return Outcome(
            command=self.command,
            figures={
                "dry_run": True,
                "would_fill": None if self.folder is None else str(self.folder),
                "steps": [asdict(step) for step in self.steps],
                "total": total,
            },
            summary=[told],
            notes=notes,
            shown=[_table(self.steps), told, *notes],
        )

    def _spread(self) -> list[str]:
        """What is not as in one process."""
        found: list[str] = []
        if self._jobs > 1:
            found.append(
                f"--jobs {self._jobs}: so many cells at a time, each with one thread where --threads does not say more; the "
                f"time is that of one after another with all threads. The memory is {amount(self.each)} for this process "
                "and for each of theirs, beside what Python itself holds in each."
            )
        if self.spread is not None and self.spread.backend != "processes":
            found.append(
                f"--backend {self.spread.backend}: the time is that of one cell after another on this machine, and each "
                "worker of the cluster needs this memory for itself."
            )
        if ranks.world() > 1:
            found.append(
                f"{ranks.world()} processes share the passes, and the time is that of one. The memory is {amount(self.each)} "
                "for each, wherever it runs."
            )
        return found

    def _short(self) -> list[str]:
        """A warning where this machine has not that much memory free."""
        free = mapped.free_memory()
        if free is None or self.memory <= free:
            return []
        return [
            f"That is more memory than the {amount(free)} that are free here now: end other programs, take a larger machine or "
            f"smaller batches, or, of a trained model that is only read, give --device {DISK}."
        ]


def _on_this_machine() -> int:
    """Processes of this job on this machine, as torchrun tells each of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.world() > 1 else 1


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def amount(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _table(steps: Sequence[Step]) -> Table:
    table = Table(title="What would be done", box=box.SIMPLE_HEAD)
    for heading in ("step", "what", "block forwards", "time", "memory"):
        table.add_column(heading, justify="left" if heading in ("step", "what") else "right", no_wrap=heading != "what")
    for step in steps:
        costs = (f"{step.forwards:,.0f}" if step.forwards else "-", duration(step.seconds), amount(step.memory))
        cells = ("is there", "-", "-") if step.there else costs
        table.add_row(*(Text(cell) for cell in (step.name, step.what, *cells)), style="dim" if step.there else "")
    return table
