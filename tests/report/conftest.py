"""Small made-up results that the tests of this room share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from weightsmith.effects import Effects
from weightsmith.report import plots
from weightsmith.site import Site

Rows = list[dict[str, object]]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Figures are full of cycles, and every collection of them would walk through torch as well, a fifth of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def effects() -> Effects:
    """Six layers, the first of them with a negative mean effect."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([-0.05, 0.0, 0.1, 0.2, 0.4, 0.3], dtype=torch.float64)
    values = means + 0.05 * torch.randn(20, 6, generator=generator, dtype=torch.float64)
    sites = tuple(Site("resid.out", layer, tokens="cls") for layer in range(6))
    return Effects(sites, values, tuple(f"train/{i}" for i in range(20)), "probability", {"target": "predicted"})


@pytest.fixture(scope="session")
def measured() -> Callable[..., Effects]:
    """`measured(sites, samples=6, seed=0, **info)`: effects around a mean that differs by site, of either sign."""

    def make(sites: Sequence[Site], samples: int = 6, seed: int = 0, **info: object) -> Effects:
        random = np.random.default_rng(seed)
        values = random.normal(size=len(sites)) + 0.3 * random.normal(size=(samples, len(sites)))
        names = tuple(f"val/{i}" for i in range(samples))
        return Effects(tuple(sites), torch.tensor(values), names, "probability", {"target": "predicted", **info})

    return make


@pytest.fixture(scope="session")
def laid_out() -> Callable[[Figure], tuple[float, float]]:
    """Width and height in inches of a figure, once everything has found its place; drawing is what takes long.

    A warning, of panels without room say, is an error.
    """

    def inches(figure: Figure) -> tuple[float, float]:
        with plots.style():
            figure.get_layout_engine().execute(figure)
        width, height = figure.get_size_inches()
        return float(width), float(height)

    return inches


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages get their figures made and not drawn, for tests of the text around them."""
    monkeypatch.setattr(plots, "as_data_uri", lambda figure: "data:image/png;base64,")


@pytest.fixture(scope="session")
def training_rows() -> Rows:
    """Three epochs as a CSV file gives them; the second is the best."""
    return [
        {"epoch": str(e), "train_loss": "0.5", "train_accuracy": "0.8", "val_loss": "0.6", "val_accuracy": accuracy}
        for e, accuracy in ((1, "0.7"), (2, "0.9"), (3, "0.8"))
    ]


def evaluation(method: str, part: str, class_names: tuple[str, ...]) -> Rows:
    """Rows of evaluation_report.csv, as text."""

    def row(measure: str, name: str, before: float | None, after: float, n: int = 500) -> dict[str, object]:
        ends = ("", "_low", "_high")
        shift = (0.0, -0.02, 0.02)
        first = ["" if before is None else f"{before + by:.6f}" for by in shift]
        return {
            "method": method,
            "part": part,
            "measure": measure,
            "class": name,
            **{f"before{end}": value for end, value in zip(ends, first, strict=True)},
            **{f"after{end}": f"{after + by:.6f}" for end, by in zip(ends, shift, strict=True)},
            "n": str(n),
        }

    return [
        row("accuracy", "", 0.9, 0.94),
        row("efficacy", "", None, 0.967, 30),
        row("generalisation", "", None, 0.85, 30),
        row("locality", "", None, 0.991, 450),
        row("repaired", "", None, 0.4, 50),
        row("net_accuracy_change", "", None, 0.04),
        row("macro_f1", "", 0.88, 0.93),
        *(row(score, name, 0.8, 0.9) for name in class_names for score in ("precision", "recall", "f1")),
    ]


@pytest.fixture(scope="session")
def evaluation_rows() -> Callable[..., Rows]:
    """Rows of two methods on one part or several."""

    def rows(class_names: tuple[str, ...] = ("cat", "dog"), parts: tuple[str, ...] = ("held_out",)) -> Rows:
        return [
            row for method in ("alphaedit", "head") for part in parts for row in evaluation(method, part, class_names)
        ]

    return rows


@pytest.fixture(scope="session")
def confusion() -> Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Counts before, and after two methods that differ from it in a few cells."""

    def counts(classes: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        random = np.random.default_rng(0)
        before = random.integers(0, 9, (classes, classes)) + np.diag(random.integers(60, 120, classes))
        after = {}
        for shift, name in enumerate(("alphaedit", "head")):
            after[name] = before.copy()
            after[name][shift, shift] += 3
            after[name][shift, 1 - shift] = max(0, before[shift, 1 - shift] - 3)
        return before, after

    return counts
