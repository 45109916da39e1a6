"""Parts of plans: calls and inputs apart, figures by their panels, data in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from weightsmith.data.sources import open_data
from weightsmith.data.split import from_arrays
from weightsmith.run.forecast import parts
from weightsmith.run.forecast.pace import Pace, pace_of
from weightsmith.run.forecast.parts import Drawing, figures, held_by, training
from weightsmith.train import TrainOptions

PACE = Pace(
    blocks=4, call=1.0, image=0.1, trained_call=3.0, trained=0.3, update=0.5, saved=2.0, weights=100, kept=10, alive=2, keys=8
)  # fmt: skip


def test_a_pass_counts_by_its_batches_and_its_inputs() -> None:
    assert PACE.passes(10, 4) == pytest.approx(3 * 1.0 + 10 * 0.1)
    assert PACE.descents(10, 5) == pytest.approx(2 * 3.0 + 10 * 0.3)
    step = training(PACE, 100, 20, TrainOptions(epochs=2, batch_size=32))
    # Four steps of 32 images, a pass over 20 and a checkpoint, each epoch.
    assert step.seconds == pytest.approx(2 * (4 * (3.0 + 32 * 0.3 + 0.5) + (1.0 + 2.0) + 2.0))
    assert step.memory == 5 * 100 + 32 * 10


def test_figures_cost_their_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_panel", lambda: 1.0)
    monkeypatch.setattr(parts, "_text", lambda: 0.1)
    monkeypatch.setattr(parts, "_overlays", lambda: (3.0, 0.5))
    step = figures(Drawing(panels=2, texts=10), Drawing(overlays=4))
    assert step.seconds == pytest.approx(2 * 1.0 + 10 * 0.1 + 3.0 + 4 * 0.5)
    assert step.stays == 2 * parts._PANEL_BYTES + 4 * parts._OVERLAY_BYTES + parts._CANVAS_BYTES
    assert figures(Drawing(panels=2)).seconds == 2.0
    assert step.what == "2 figures, tables and a page"


def test_data_in_memory_are_counted_once() -> None:
    images = np.zeros((20, 4, 4), np.uint8)
    whole = from_arrays(images, np.zeros(20, np.int64), ("a", "b"), "source", "train")
    assert held_by(whole.subset([0, 1]), whole.subset([2])) == 320
    split = open_data("digits").split(0.2, 0)
    assert held_by(*split.parts().values()) == 1797 * 8 * 8


def test_the_memory_of_an_input_is_that_of_its_tensors(tiny_model) -> None:
    """A pass of gradients holds more than one without; more blocks hold more."""
    small = pace_of(tiny_model("vit"), trains=False)
    assert small.kept > small.alive > 0
    assert small.weights == sum(p.numel() * 4 for p in tiny_model("vit").module.parameters())
    assert replace(small, kept=0).training_memory(8) < small.training_memory(8)
