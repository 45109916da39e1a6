"""The seal on held-out data: it can be read inside an evaluation and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from weightsmith.errors import HeldOutError

_EVALUATING: ContextVar[bool] = ContextVar("weightsmith_evaluating", default=False)


@contextmanager
def evaluation() -> Iterator[None]:
    """Open the seal while the block runs. Only `weightsmith.evaluate` enters it."""
    token = _EVALUATING.set(True)
    try:
        yield
    finally:
        _EVALUATING.reset(token)


def check_open(name: str) -> None:
    """Raise `HeldOutError` unless an evaluation is under way."""
    if not _EVALUATING.get():
        raise HeldOutError(
            f"{name} is held out: only an evaluation may read it; "
            "give the train or val part here, or pass it to weightsmith.evaluate"
        )
