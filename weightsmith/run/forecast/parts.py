"""Steps that several commands have: training, passes over images, figures."""

from __future__ import annotations

import io
import math
import time

import numpy as np

from weightsmith.run.forecast.pace import Pace
from weightsmith.run.forecast.plan import Step
from weightsmith.train import TrainOptions

_DRAWN: list[float] = []


def training(
    pace: Pace, images: int, validation: int, recipe: TrainOptions, *, there: bool = False, name: str = "train"
) -> Step:
    """Epochs of training, with a pass over the validation part after each."""
    steps = math.ceil(images / recipe.batch_size)
    return Step(
        name=name,
        what=f"{recipe.epochs} epochs of {images} images in batches of {recipe.batch_size}",
        forwards=recipe.epochs * (3 * pace.forwards(images) + pace.forwards(validation)),
        seconds=recipe.epochs * (pace.steps(steps, min(recipe.batch_size, images)) + pace.passes(validation)),
        memory=pace.training_memory(min(recipe.batch_size, images)),
        there=there,
    )


def passes(pace: Pace, name: str, what: str, inputs: float, *, batch: int = 256, there: bool = False) -> Step:
    """Forward passes alone."""
    return Step(
        name=name,
        what=what,
        forwards=pace.forwards(inputs),
        seconds=pace.passes(inputs),
        memory=batch * pace.alive,
        there=there,
    )


def figures(count: int) -> Step:
    """Figures, tables and the page: a figure is drawn, into memory, and timed."""
    if not _DRAWN:
        from matplotlib.figure import Figure

        for _ in range(2):  # the first loads fonts
            started = time.perf_counter()
            # Of the size that figures of ours have in the middle: panels with ticks, colour bars and legends cost the most.
            figure = Figure(figsize=(9, 4))
            for axes in figure.subplots(1, 2):
                drawn = axes.imshow(np.zeros((12, 12)))
                axes.plot(np.zeros(12), label="line")
                axes.legend()
                figure.colorbar(drawn, ax=axes)
            figure.savefig(io.BytesIO(), dpi=150, bbox_inches="tight")
            _DRAWN.append(time.perf_counter() - started)
    first, each = _DRAWN[0], _DRAWN[-1]
    return Step(name="report", what=f"about {count} figures, tables and a page", seconds=first + each * (count - 1))
