"""A bench of the small run that the tests of `run` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from weightsmith.run.bench.command import opened
from weightsmith.run.bench.session import Session
from weightsmith.run.options.bench import WorkbenchOptions

Bench = Callable[..., Session]


@pytest.fixture
def bench(run_copy: Path) -> Iterator[Bench]:
    """`bench(**options)`: the session of a bench of the run; the one before it is closed."""
    with ExitStack() as stack:

        def make(**options: object) -> Session:
            stack.close()
            asked = WorkbenchOptions(run=str(run_copy), device="cpu", **options)  # type: ignore[arg-type]
            return Session(stack.enter_context(opened(asked)), asked.max_images)

        yield make


@pytest.fixture
def first_errors(bench: Bench) -> Callable[[Session, int], list[int]]:
    """Errors that may be edited."""
    return lambda session, count: [i for i in session.listed("wrong") if not session.picture(i).locked][:count]
