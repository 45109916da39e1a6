from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.report import overlays
from weightsmith.site import Site


def panels(figure):
    """The overlays: axes that hold an image, without the colour bar's."""
    return [axes for axes in figure.axes if axes.images]


def same(first, second):
    return np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(first, float), np.nan), np.asarray(second, float))


def pictures(count=3, channels=3, height=16, width=16):
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def patches(grid=(4, 4), at=(0, 2, 5), special=1, block=1):
    count = special + grid[0] * grid[1]
    return [
        Site("resid.out", layer, tokens=tuple(range(first, min(first + block, count))))
        for layer in at
        for first in range(0 if block == 1 else special, count, block)
    ]


@pytest.mark.parametrize(
    ("samples", "shape", "grid", "at", "special", "block"),
    [
        (1, (3, 16, 16), (4, 4), (0, 2, 5), 1, 1),
        (1, (1, 8, 8), (2, 2), (3,), 1, 1),
        (7, (4, 20, 12), (5, 3), (1,), 5, 1),
        (2, (2, 16, 16), (4, 4), (0, 1), 0, 4),
    ],
)
def test_token_maps_draw_exactly_their_rows(measured, samples, shape, grid, at, special, block, laid_out):
    effects = measured(patches(grid, at, special=special, block=block), samples)
    images = pictures(samples, *shape)
    figure = overlays.token_maps(effects, images, grid, special)
    rows = overlays.token_map_rows(effects, grid, special)
    cells = np.array([row["effect"] for row in rows]).reshape(-1, *grid)
    drawn = [axes for axes in panels(figure) if len(axes.images) == 2]
    assert len(drawn) == len(cells) == len(at) * min(samples, overlays.MOST_SAMPLES)
    for axes, wanted in zip(drawn, cells, strict=True):
        same(axes.images[1].get_array(), wanted)
        assert axes.images[1].get_extent() == axes.images[0].get_extent()
    assert len({(axes.images[1].norm.vmin, axes.images[1].norm.vmax) for axes in drawn}) == 1
    first = np.asarray(panels(figure)[0].images[0].get_array())
    same(first, images[0, 0] if shape[0] < 3 else images[0, :3].transpose(1, 2, 0))
    for row in rows:
        site = next(s for s in effects.sites if s.layer == row["layer"] and row["patch"] + special in s.tokens)
        assert row["effect"] == effects.values[effects.samples.index(row["sample"]), effects.sites.index(site)]
    assert max(laid_out(figure)) < 17


def test_token_maps_tell_the_effect_at_cls_of_the_same_kind(measured):
    effects = measured([*patches(at=(2,)), Site("mlp.out", 2, tokens="cls")], 2)
    cls = effects.values[:, effects.sites.index(Site("resid.out", 2, tokens=(0,)))].tolist()
    figure = overlays.token_maps(effects, pictures(2), (4, 4), 1, [2], ["a $5", "b"])
    assert [axes.get_title() for axes in panels(figure)] == [
        "a $5",
        f"layer 2\nCLS {cls[0]:+.3g}",
        "b",
        f"layer 2\nCLS {cls[1]:+.3g}",
    ]
    rows = overlays.token_map_rows(measured(patches(at=(2,))[1:], 2), (4, 4), 1)
    assert all(math.isnan(row["cls_effect"]) for row in rows)


def test_blocks_that_overlap_share_their_patches_and_what_was_not_measured_is_blank():
    sites = [Site("resid.out", 0, tokens=(1, 2)), Site("resid.out", 0, tokens=(2, 3))]
    effects = Effects(tuple(sites), torch.tensor([[1.0, 3.0]]).double(), ("a",), "probability")
    rows = overlays.token_map_rows(effects, (2, 2), 1)
    same([row["effect"] for row in rows], [1, 2, 3, math.nan])


def test_token_maps_draw_four_layers_evenly_spaced_unless_told(measured):
    effects = measured(patches((1, 2), at=range(12)), 1)
    assert list(dict.fromkeys(row["layer"] for row in overlays.token_map_rows(effects, (1, 2), 1))) == [0, 4, 7, 11]
    assert {row["layer"] for row in overlays.token_map_rows(effects, (1, 2), 1, [3])} == {3}


def test_token_maps_refuse_what_they_cannot_draw(measured):
    effects = measured(patches(), 3)
    for changed, words in (
        ({"layers": [1]}, "layer 1 were not measured"),
        ({"images": pictures(2)}, "3 samples need an image"),
        ({"names": ["a"]}, "a name each"),
        ({"effects": measured([Site("mlp.out", 0, tokens="cls")], 3)}, "no effects of single patches"),
        ({"effects": measured([*patches(), Site("mlp.out", 0, tokens=(3,))], 3)}, "several kinds"),
    ):
        given = {"effects": effects, "images": pictures(), "grid": (4, 4), "special": 1, **changed}
        with pytest.raises(WeightsmithError, match=words):
            overlays.token_maps(**given)


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_patch_weights_draw_exactly_their_rows_and_outline_the_top(count, laid_out):
    weights = np.random.default_rng(0).normal(size=(count, 12))
    top = [np.argsort(-row)[:3].tolist() for row in weights]
    names = [f"image {i}" for i in range(count)]
    figure = overlays.patch_weights(pictures(count), weights, (3, 4), top, names)
    rows = overlays.patch_weight_rows(weights, (3, 4), top, names)
    drawn = [axes for axes in panels(figure) if len(axes.images) == 2]
    assert len(drawn) == min(count, 6)
    for axes, name in zip(drawn, names, strict=False):
        found = [row for row in rows if row["name"] == name]
        same(axes.images[1].get_array().ravel(), [row["weight"] for row in found])
        centres = [path.vertices[:4].mean(0) for path in axes.collections[-1].get_paths()]
        outlined = {(int(y // (16 / 3)), int(x // 4)) for x, y in centres}
        assert outlined == {(row["row"], row["column"]) for row in found if row["top"]}
    assert max(laid_out(figure)) < 17


def test_patch_weights_that_match_nothing_are_refused():
    weights = np.zeros((2, 4))
    for changed, words in (
        ({"grid": (2, 3)}, "one weight for each"),
        ({"names": ["a"]}, "names and lists"),
        ({"top": [[0], [4]]}, "patch 4 is beyond the 4"),
        ({"images": pictures(3)}, "need that many images"),
    ):
        given = {
            "images": pictures(2),
            "weights": weights,
            "grid": (2, 2),
            "top": [[0], []],
            "names": ["a", "b"],
            **changed,
        }
        with pytest.raises(WeightsmithError, match=words):
            overlays.patch_weights(**given)
