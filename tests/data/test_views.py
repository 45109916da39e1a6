"""Random views for training: what `natural-colour` changes and what it leaves."""

from __future__ import annotations

import pytest
import torch

from weightsmith.data import views
from weightsmith.data.views import natural, natural_colour, random_view, view
from weightsmith.errors import WeightsmithError

LUMA = torch.tensor([0.299, 0.587, 0.114])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The slow way: each image by itself, each factor by its definition."""
    moved = natural(images, generator)
    factors = torch.rand(3, len(images), generator=generator) * 0.4 + 0.8
    out = torch.empty_like(moved)
    for place, image in enumerate(moved):
        brightness, contrast, saturation = factors[:, place].tolist()
        image = (image * brightness).clamp(0, 255)
        mean = (image * LUMA[:, None, None]).sum(0).mean()
        image = (contrast * image + (1 - contrast) * mean).clamp(0, 255)
        grey = (image * LUMA[:, None, None]).sum(0)
        out[place] = (saturation * image + (1 - saturation) * grey).clamp(0, 255)
    return out


def test_colour_changes_as_defined() -> None:
    images = torch.rand(9, 3, 8, 8, generator=seeded(1)) * 255
    torch.testing.assert_close(natural_colour(images, seeded()), one_by_one(images, seeded()), atol=1e-3, rtol=1e-5)


def test_colour_changes_lightly_and_differently_from_image_to_image() -> None:
    flat = torch.tensor([200.0, 100.0, 50.0])[:, None, None].expand(
        64, 3, 8, 8
    )  # neither mirrored nor shifted it changes
    seen = natural_colour(flat, seeded())[:, :, 4, 4]
    luma = seen @ LUMA / (flat[:, :, 4, 4] @ LUMA)
    assert 0.79 < float(luma.min()) < 0.85
    assert 1.15 < float(luma.max()) < 1.21
    chroma = (seen[:, 0] - seen[:, 2]) / luma / 150
    assert float(chroma.std()) > 0.08
    assert bool(((chroma > 0.63) & (chroma < 1.45)).all())


@pytest.mark.parametrize("level", [0.0, 255.0])
def test_values_stay_in_range(level: float) -> None:
    images = torch.rand(16, 3, 8, 8, generator=seeded(1)) * 255
    images[:, 0] = level
    seen = natural_colour(images, seeded())
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 255


def test_grey_images_stay_grey() -> None:
    grey = torch.rand(8, 1, 8, 8, generator=seeded(1)) * 255
    seen = natural_colour(grey, seeded())
    assert seen.shape == grey.shape
    in_three = natural_colour(grey.expand(-1, 3, -1, -1), seeded())
    torch.testing.assert_close(in_three, seen.expand(-1, 3, -1, -1), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(views._VIEWS))
def test_the_seed_decides_the_view(name: str) -> None:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    first = random_view(pixels, name, 7)
    assert (first.shape, first.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(first, random_view(pixels, name, 7))
    assert torch.equal(first, random_view(pixels, name, 8)) == (name == "none")


def test_an_unknown_view_is_told() -> None:
    with pytest.raises(WeightsmithError, match="--augment natural-color is not known: did you mean 'natural-colour'"):
        view("natural-color", "--augment")
