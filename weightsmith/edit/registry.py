"""Editors by name. A new one is a frozen dataclass of its hyper-parameters under `@editor("name")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from weightsmith.delta import Delta
from weightsmith.edit.preserved import Preserved
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.models import Model
from weightsmith.request import Request


class Editor(Protocol):
    """Turns requests into a change of weights. It never changes the model it is given."""

    def solve(
        self, model: Model, requests: Sequence[Request], preserve: Preserved, cache_dir: Path | None = None
    ) -> Delta:
        """A delta for this model's weights that answers the requests.

        Args:
            preserve: images or texts on which the model should stay as it is; of images only those that it gets right
                count.
            cache_dir: where measured statistics are kept.
        """
        ...


_EDITORS: dict[str, type[Any]] = {}
E_ = TypeVar("E_", bound=type[Any])


def editor(name: str) -> Callable[[E_], E_]:
    """Register an editor class under a name."""

    def register(cls: E_) -> E_:
        _EDITORS[name] = cls
        return cls

    return register


def editors() -> dict[str, type[Any]]:
    """Every registered editor class by name."""
    return dict(_EDITORS)


def make_editor(name: str, **options: Any) -> Editor:
    """An editor by name with its hyper-parameters. Raises `WeightsmithError` for an unknown name."""
    if name not in _EDITORS:
        raise WeightsmithError(f"--edit-method {name} is no editor: {did_you_mean(name, _EDITORS)}")
    made: Editor = _EDITORS[name](**options)
    return made
