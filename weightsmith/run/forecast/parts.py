"""Steps that several commands have: training, passes over images, figures, statistics; and what the data take in memory."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from weightsmith.data.images import ArrayStore, ImageSet
from weightsmith.evaluate import Classification
from weightsmith.measure import Predictions
from weightsmith.run.forecast.pace import Pace
from weightsmith.run.forecast.plan import Step
from weightsmith.train import TrainOptions

WORDS = 12
"""Tokens of a prompt with its answer, on average: those of a pass over text."""
_PANEL_BYTES, _OVERLAY_BYTES, _CANVAS_BYTES = 2_500_000, 400_000, 8_000_000
"""What a panel with axes and an image without hold as long as their figure is there, and a figure while it is drawn.

Measured apart from any command: figures of each kind were drawn and held, and what the process had grown by was divided by
their number (2.4 MB a panel of three lines, 0.4 MB an image). A canvas at 150 pixels an inch has 90 kB a square inch, and is
there three times: drawn, copied, compressed.
"""


def training(
    pace: Pace, images: int, validation: int, recipe: TrainOptions, *, there: bool = False, name: str = "train"
) -> Step:
    """Epochs of training, with a pass over the validation part and a checkpoint after each."""
    steps, batch = math.ceil(images / recipe.batch_size), min(recipe.batch_size, images)
    return Step(
        name=name,
        what=f"{recipe.epochs} epochs of {images} images in batches of {recipe.batch_size}",
        forwards=recipe.epochs * (3 * pace.forwards(images) + pace.forwards(validation)),
        seconds=recipe.epochs * (pace.steps(steps, batch) + pace.passes(validation) + pace.saved),
        memory=max(pace.training_memory(batch), 5 * pace.weights + min(256, validation) * pace.alive),
        there=there,
    )


def passes(pace: Pace, name: str, what: str, inputs: float, *, batch: int = 256, there: bool = False) -> Step:
    """Forward passes alone."""
    return Step(
        name=name,
        what=what,
        forwards=pace.forwards(inputs),
        seconds=pace.passes(inputs, batch),
        memory=math.ceil(min(batch, inputs)) * pace.alive,
        there=there,
    )


@cache
def scoring(images: int, classes: int) -> float:
    """Seconds of scores with their intervals: of predictions made up, four in five right."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    given = np.where(random.random(images) < 0.8, labels, random.integers(0, classes, images))
    logits = torch.nn.functional.one_hot(torch.from_numpy(given), classes).float()
    made_up = Predictions(logits, torch.from_numpy(labels), tuple(map(str, range(images))))
    found = []
    for _ in range(2):
        started = time.perf_counter()
        Classification.of(made_up)
        found.append(time.perf_counter() - started)
    return min(found)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure: so many panels with axes, images without, and numbers in cells."""

    panels: int = 0
    overlays: int = 0
    texts: int = 0

    @property
    def memory(self) -> int:
        return self.panels * _PANEL_BYTES + self.overlays * _OVERLAY_BYTES


def figures(*drawings: Drawing) -> Step:
    """Figures, tables and the page: a panel of each kind is drawn, into memory, and timed.

    A figure refers to itself in circles, so it stays until Python looks for such, mostly to the end: all of them count.
    """
    seconds = 0.0
    for one in drawings:
        seconds += one.panels * _panel()
        seconds += one.texts * _text() if one.texts else 0.0
        seconds += _overlays()[0] + one.overlays * _overlays()[1] if one.overlays else 0.0
    count = len(drawings)
    return Step(
        name="report",
        what=f"{count} figure{'s' * (count != 1)}, tables and a page",
        seconds=seconds,
        stays=sum(one.memory for one in drawings) + _CANVAS_BYTES,
    )


def loading(started: float, weights: int = 0) -> Step:
    """Reading models and data, which planning has just done as well, since `started` of the process's clock."""
    return Step(name="load", what="models and data", seconds=time.perf_counter() - started, memory=weights)


def held_by(*parts: ImageSet) -> int:
    """Bytes of the images that are in memory as long as the command runs; those that lie in files are not."""
    arrays = {id(one.store.array): one.store.array for one in parts if isinstance(one.store, ArrayStore)}
    return sum(array.nbytes for array in arrays.values() if not isinstance(array, np.memmap))


@cache
def _panel() -> float:
    """Seconds of a panel with axes, as our figures have it: lines, their bands, ticks, titles, a legend."""
    return _drawn(_plain)


@cache
def _text() -> float:
    """Seconds of a number in a cell."""

    def numbers(figure: Any) -> None:
        axes = _plain(figure)
        for place in range(20):
            axes.text(place / 20, 0.5, "0.12", ha="center", fontsize=7.5)

    return max(_drawn(numbers) - _panel(), 0.0) / 20


@cache
def _overlays() -> tuple[float, float]:
    """Seconds of a figure of images without axes: (whatever it shows, of each image), from one of two and one of six."""
    from weightsmith.report import patch_weights

    def seconds(rows: int) -> float:
        images, weights = np.zeros((rows, 3, 8, 8), np.uint8), np.ones((rows, 16))
        return _fastest(lambda: patch_weights(images, weights, (4, 4), [(0, 1, 2)] * rows, ["name"] * rows))

    few, more = seconds(1), seconds(3)
    each = max(more - few, 0.0) / 4
    return max(few - 2 * each, 0.0), each


def _plain(figure: Any) -> Any:
    axes = figure.subplots()
    places = np.arange(6)
    for line in range(3):
        axes.fill_between(places, places - line, places + line, alpha=0.16)
        axes.plot(places, places * line, marker="o", label=f"line {line}")
    axes.set_title("title")
    axes.set_xlabel("layer")
    axes.set_ylabel("effect")
    axes.grid(axis="y")
    axes.legend(frameon=False)
    return axes


def _drawn(fill: Callable[[Any], object]) -> float:
    """Seconds of a figure as ours are laid out."""
    from matplotlib.figure import Figure

    def figure() -> Any:
        made = Figure(figsize=(5.5, 3.8), layout="constrained")
        fill(made)
        return made

    return _fastest(figure)


def _fastest(make: Callable[[], Any]) -> float:
    """Seconds of a figure that is made and drawn into memory; of two, for the first loads fonts."""
    found: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        make().savefig(io.BytesIO(), format="png", dpi=150, bbox_inches="tight")
        found.append(time.perf_counter() - started)
    return min(found)
