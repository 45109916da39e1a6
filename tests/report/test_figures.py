"""What holds for every figure of `weightsmith locate`, whatever its values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from weightsmith import report
from weightsmith.report import plots
from weightsmith.site import Site


def overlay(effects):
    return report.token_maps(effects, np.zeros((1, 3, 4, 8), np.uint8), (1, 2), 1)


def scatter(effects):
    return report.screen_scatter(effects, effects, math.nan, 2)


def curves(effects):
    return report.layer_curves([effects])


@pytest.fixture(
    params=[
        (curves, [Site("mlp.out", layer, span=span) for span in (1, 2) for layer in range(4 - span)], 2),
        (report.layer_head_map, [Site("attn.z", layer, head) for layer in range(2) for head in range(2)], 2),
        (report.layer_token_map, [Site("resid.out", layer, tokens=(t,)) for t in range(2) for layer in range(2)], 2),
        (scatter, [Site("mlp.out", layer) for layer in range(4)], 2),
        (overlay, [Site("resid.out", 0, tokens=(token,)) for token in range(3)], 1),
    ],
    ids=["curves", "heads", "tokens", "scatter", "images"],
)
def figure(request, measured):
    """`figure(change)`: one of them, of few values that `change` makes others of."""
    draw, sites, samples = request.param

    def make(change):
        effects = measured(sites, samples)
        return draw(replace(effects, values=change(effects.values)))

    return make


@pytest.mark.parametrize(
    "change",
    [
        lambda values: 0 * values,
        lambda values: 0 * values - 0.25,
        lambda values: 1e-12 * values,
        lambda values: 1e9 * values,
        lambda values: torch.where(torch.arange(values.shape[1]) == 1, math.nan, values),
        lambda values: math.nan * values,
    ],
    ids=["zero", "constant and negative", "tiny", "huge", "a site without numbers", "no numbers"],
)
def test_every_figure_takes_any_values(figure, change):
    drawn = figure(change)
    drawn.set_layout_engine("none")  # the test below lays them out
    drawn.draw_without_rendering()  # warnings are errors
    assert drawn.axes


def test_nothing_is_cut_off_in_the_file(figure, tmp_path):
    plots.save(figure(lambda values: 1e9 * values), tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert pixels.min() < 128
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()
