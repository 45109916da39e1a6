"""Hand cells out and take what they came to as it comes: here, in processes of this machine, or in a cluster."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.progress import progress
from weightsmith.run.spread.interrupts import interrupts_held
from weightsmith.run.spread.settings import Settings
from weightsmith.run.spread.work import Answer, Failure, Measure, Task, answered, attempted, limited

_log = logging.getLogger(__name__)

_SURE = 3
"""Cells after which it is told how long the rest takes."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Cells that do not depend on each other.

    Attributes:
        cells: what `measure` takes, small and picklable; titles: for people, one a cell.
        measure: measures a cell in this process; what it raises makes a `Failure` of that cell.
        make: makes the same in another process, once for all cells; small and picklable.
        costs: of the cells, in any unit [all the same].
        called: what one of them is called.
        short: whether a cell takes so little that the log need not name it.
    """

    cells: Sequence[Any]
    titles: Sequence[str]
    measure: Measure
    make: Callable[[], Measure]
    costs: Sequence[float] = ()
    called: str = "cell"
    short: bool = False

    @property
    def level(self) -> int:
        """Of what the log says of each cell."""
        return logging.DEBUG if self.short else logging.INFO

    def cost(self, number: int) -> float:
        return self.costs[number] if self.costs else 1.0


def each(sweep: Sweep, settings: Settings) -> Iterator[tuple[int, Any]]:
    """(number of a cell, what it came to or why it failed), as cells are finished; every cell once.

    Raises:
        WeightsmithError: a cluster that is not there or cannot do it, a worker that was killed, or what ends any sweep: a
            full disk, or held-out data asked for too early.
    """
    if settings.here:
        yield from _here(sweep, settings.threads)
    elif sweep.cells:
        yield from _spread(sweep, settings)


def _here(sweep: Sweep, threads: int) -> Iterator[tuple[int, Any]]:
    spent = _Spent(sweep)
    for number, (cell, title) in enumerate(zip(sweep.cells, sweep.titles, strict=True)):
        _log.log(sweep.level, "%s %d of %d: %s%s", sweep.called, number + 1, len(sweep.cells), title, spent.left())
        with limited(threads):
            found = attempted(sweep.measure, cell)
        _warn(title, found)
        yield number, found
        spent.add(number)


def _spread(sweep: Sweep, settings: Settings) -> Iterator[tuple[int, Any]]:
    """Through joblib; of a worker that is gone, and of whatever ends the sweep, no process stays behind."""
    spent, count = _Spent(sweep), len(sweep.cells)
    with _answers(sweep, settings) as answers, progress(f"{sweep.called}s", count) as advance:
        for done, (number, answer) in enumerate(answers, 1):
            title = sweep.titles[number]
            for text in answer.told:
                _log.warning("%s: %s", title, text)
            if answer.ends is not None:
                raise answer.ends
            _warn(title, answer.found)
            yield number, answer.found  # kept before anything is told of it
            spent.add(number)
            _log.log(sweep.level, "%s %d of %d is done: %s%s", sweep.called, done, count, title, spent.left())
            advance(1, title)


@contextmanager
def _answers(sweep: Sweep, settings: Settings) -> Iterator[Iterator[tuple[int, Answer]]]:
    """(number, answer) of every cell, in the order in which they come."""
    from joblib import Parallel, delayed

    from weightsmith.run.spread.clusters import pool_of

    shared = hashlib.sha256(pickle.dumps(sweep.make)).hexdigest() + f"-{os.getpid()}-{time.monotonic_ns()}"
    with pool_of(settings, len(sweep.cells)) as pool:
        parent = os.getpid() if settings.backend == "processes" else 0
        tasks = [Task(sweep.make, shared, cell, settings.threads, os.getcwd(), parent) for cell in sweep.cells]
        parallel = Parallel(
            n_jobs=pool.jobs,
            backend=pool.backend,
            batch_size=1,
            pre_dispatch=pool.jobs,
            return_as="generator_unordered",
        )
        _log.info("%d %ss, %d at a time, on %s", len(tasks), sweep.called, pool.jobs, pool.told)
        answers: Generator[tuple[int, Answer], None, None]
        with interrupts_held():
            answers = parallel(delayed(numbered)(number, task) for number, task in enumerate(tasks))
        try:
            yield answers
        except BrokenProcessPool as error:
            raise WeightsmithError(
                "a worker was ended from outside, by the system for want of memory perhaps: what was finished is kept, give "
                "--resume and the run's --run-name to go on, with fewer --jobs"
            ) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of answers that nobody will read
                answers.close()


def numbered(number: int, task: Task) -> tuple[int, Answer]:
    """An answer with the number of its cell, for answers come in any order."""
    return number, answered(task)


def _warn(title: str, found: Any) -> None:
    if isinstance(found, Failure):
        _log.warning("%s failed: %s", title, found.why)


class _Spent:
    """How long the cells behind the first took, by which the rest is estimated: the first has what others share."""

    def __init__(self, sweep: Sweep) -> None:
        self._costs = [sweep.cost(number) for number in range(len(sweep.cells))]
        self._rest = sum(self._costs)
        self._started, self._done, self._paid = 0.0, 0, 0.0

    def add(self, number: int) -> None:
        self._done += 1
        self._rest -= self._costs[number]
        if self._done == 1:
            self._started = time.monotonic()
        else:
            self._paid += self._costs[number]

    def left(self) -> str:
        """How long the rest takes, as the end of a sentence; "" while that is a mere guess."""
        if self._done < _SURE or self._rest <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / self._paid * self._rest
        return f", about {seconds / 60:.0f} min left"
