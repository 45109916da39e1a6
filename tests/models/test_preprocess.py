from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.models import Preprocess


def pillow(pixels: Tensor, size: int) -> Tensor:
    """Each image resized by Pillow, values in [0, 1]."""
    found = []
    for image in pixels:
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array if array.shape[2] == 3 else array[..., 0])
        resized = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        found.append(torch.from_numpy(resized.copy()).reshape(size, size, -1).permute(2, 0, 1) / 255)
    return torch.stack(found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 8), (8, 8, 30), (13, 20, 8), (224, 100, 32), (9, 9, 9)])
def test_resizing_is_pillows(
    random_pixels: Callable[..., Tensor], channels: int, height: int, width: int, size: int
) -> None:
    pixels = random_pixels(2, side=max(height, width), channels=channels)[:, :, :height, :width]
    pixels[1] = (torch.arange(width) * 255 // width).to(torch.uint8)  # a smooth one beside the noise
    plain = Preprocess(size, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    assert (plain(pixels) - pillow(pixels, size)).abs().max() <= 2 / 255


def test_an_image_of_the_right_size_is_only_normalised(random_pixels: Callable[..., Tensor]) -> None:
    pixels = random_pixels(2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    out = Preprocess(8, 3, mean, std)(pixels)
    assert out.dtype == torch.float32
    for c in range(3):
        torch.testing.assert_close(out[:, c], (pixels[:, c] / 255 - mean[c]) / std[c])
    assert Preprocess(8)(torch.tensor([[[[0]], [[255]], [[0]]]], dtype=torch.uint8)).aminmax() == (-1, 1)


def test_grey_becomes_colour_and_colour_grey(random_pixels: Callable[..., Tensor]) -> None:
    grey, colour = random_pixels(2, channels=1), random_pixels(2)
    shown = Preprocess(8, 3)(grey)
    assert shown.shape == (2, 3, 8, 8)
    assert torch.equal(shown, Preprocess(8, 3)(grey.repeat(1, 3, 1, 1)))
    faded = Preprocess(8, 1, (0.0,), (1.0,))(colour)
    torch.testing.assert_close(faded, colour.float().mean(1, keepdim=True) / 255)
    assert torch.equal(Preprocess(8, 1, (0.0,), (1.0,))(grey.repeat(1, 3, 1, 1)), grey / 255)


def test_one_channel_stays_one_channel(random_pixels: Callable[..., Tensor]) -> None:
    assert Preprocess(8, channels=1)(random_pixels(2, channels=1)).shape == (2, 1, 8, 8)


def test_the_images_given_are_not_changed(random_pixels: Callable[..., Tensor]) -> None:
    pixels = random_pixels(2)
    Preprocess(8)(pixels).add_(1)
    assert torch.equal(pixels, random_pixels(2))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.int64),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: Tensor) -> None:
    with pytest.raises(WeightsmithError, match=r"must be \(n, 1 or 3, height, width\) uint8, not") as told:
        Preprocess(8)(pixels)
    assert str(tuple(pixels.shape)) in str(told.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_hugging_face_form_is_read_back(channels: int) -> None:
    one = Preprocess(8, channels, (0.1, 0.2, 0.3)[:channels], (0.4, 0.5, 0.6)[:channels])
    assert Preprocess.from_hugging_face(one.to_hugging_face(), 8, channels) == one


def test_a_missing_processor_means_one_half() -> None:
    assert Preprocess.from_hugging_face({}, 8, 1) == Preprocess(8, 1, (0.5,), (0.5,))
    assert Preprocess.from_hugging_face({}, 8, 3) == Preprocess(8, 3)


def test_the_written_processor_does_in_transformers_what_we_do(random_pixels: Callable[..., Tensor]) -> None:
    from transformers import ViTImageProcessorPil

    one = Preprocess(8, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels = random_pixels(2, side=21)
    entries = {key: value for key, value in one.to_hugging_face().items() if key != "image_processor_type"}
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    theirs = ViTImageProcessorPil(**entries)(images, return_tensors="pt")["pixel_values"]
    assert (one(pixels) - theirs).abs().max() <= 2 / 255 / 0.4
