from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

import weightsmith as ws
from weightsmith.data.corruptions import (
    CORRUPTIONS,
    Blur,
    EmbeddingNoise,
    Greyscale,
    OtherImage,
    PatchShuffle,
    PixelNoise,
    RegionSwap,
    corruption,
)
from weightsmith.errors import WeightsmithError

RandomPixels = Callable[..., Tensor]

RANDOM = tuple(name for name in CORRUPTIONS if name not in ("greyscale", "blur"))
ALONE = tuple(name for name in CORRUPTIONS if name != "other_image")
"""The corruptions that look at one image at a time."""

SIZES = ((8, 8), (12, 8), (27, 18), (1, 9), (9, 1), (2, 2))


def labels_of(pixels: Tensor) -> Tensor:
    return torch.arange(len(pixels)) % 3


def numbered(height: int, width: int, n: int = 1) -> Tensor:
    """n images (1, height, width) whose pixels all differ."""
    assert height * width <= 256
    return torch.arange(height * width, dtype=torch.uint8).reshape(1, 1, height, width).repeat(n, 1, 1, 1)


def test_every_corruption_has_a_name_and_hyper_parameters() -> None:
    assert CORRUPTIONS == ("greyscale", "blur", "pixel_noise", "patch_shuffle", "region_swap", "other_image")
    assert [corruption(name).name for name in CORRUPTIONS] == list(CORRUPTIONS)
    assert asdict(corruption("blur", sigma=0.2)) == {"sigma": 0.2}
    assert corruption("patch_shuffle", patch=2) == PatchShuffle(2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_change_and_keep_their_form(random_pixels: RandomPixels, name: str, channels: int) -> None:
    if name == "greyscale" and channels == 1:
        return  # refused, see below
    pixels = random_pixels(7, channels=channels)
    before = pixels.clone()
    corrupted = corruption(name)(pixels, labels_of(pixels), 5)
    assert (corrupted.shape, corrupted.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)
    assert corrupted.data_ptr() != pixels.data_ptr()
    assert (corrupted != pixels).flatten(1).any(1).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides(random_pixels: RandomPixels, name: str) -> None:
    pixels = random_pixels(9)
    labels = labels_of(pixels)
    once, again, other = (corruption(name)(pixels, labels, seed) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert torch.equal(once, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", ALONE)
def test_a_set_corrupted_in_pieces_is_the_set_corrupted_at_once(random_pixels: RandomPixels, name: str) -> None:
    pixels = random_pixels(9, side=12)
    labels, corrupt = labels_of(pixels), corruption(name)
    whole = corrupt(pixels, labels, 3)
    pieces = [(0, 1), (1, 5), (5, 9)]
    assert torch.equal(torch.cat([corrupt(pixels[a:b], labels[a:b], 3, first=a) for a, b in pieces]), whole)
    assert torch.equal(corrupt(pixels[:4], labels[:4], 3), whole[:4])


@pytest.mark.parametrize("name", ["pixel_noise", "patch_shuffle", "region_swap"])
def test_equal_images_are_corrupted_differently(random_pixels: RandomPixels, name: str) -> None:
    pixels = random_pixels(1).repeat(6, 1, 1, 1)
    assert len(corruption(name)(pixels, labels_of(pixels), 0).unique(dim=0)) > 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_images_stay_no_images(random_pixels: RandomPixels, name: str) -> None:
    if name == "greyscale":
        assert Greyscale()(random_pixels(0), torch.zeros(0).long(), 0).shape == (0, 3, 8, 8)
        return
    assert corruption(name)(random_pixels(0), torch.zeros(0).long(), 0).shape == (0, 3, 8, 8)


def test_greyscale_is_the_luma_in_every_channel(random_pixels: RandomPixels) -> None:
    pixels = random_pixels(50)
    grey = Greyscale()(pixels, labels_of(pixels), 0)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    luma = (pixels.double() * torch.tensor([0.299, 0.587, 0.114]).double().view(1, 3, 1, 1)).sum(1)
    assert float((grey[:, 0] - luma).abs().max()) <= 0.5 + 1e-9


def test_grey_pixels_keep_their_level_and_grey_sets_are_refused(random_pixels: RandomPixels) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    both = torch.cat([levels, random_pixels(1, side=16)])
    assert torch.equal(Greyscale()(both, labels_of(both), 0)[:1], levels)
    for grey in (levels, levels[:, :1], levels[:0, :1]):
        with pytest.raises(WeightsmithError, match=r"--corruption greyscale changes nothing.*another corruption"):
            Greyscale()(grey, labels_of(grey), 0)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3, 4.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_a_gaussian_reflected_at_the_edges(
    random_pixels: RandomPixels, sigma: float, height: int, width: int
) -> None:
    pixels = random_pixels(2, side=27)[:, :, :height, :width]
    wide = sigma * min(height, width)
    expected = pixels.double().numpy()
    for axis, side in ((2, height), (3, width)):
        radius = min(math.ceil(3 * wide), side - 1)
        expected = gaussian_filter(expected, wide, mode="mirror", radius=radius, axes=(axis,))
    found = Blur(sigma)(pixels, labels_of(pixels), 0)
    assert np.abs(found.numpy() - expected).max() <= 0.5 + 1e-3


def test_blur_keeps_the_brightness_and_takes_the_detail(random_pixels: RandomPixels) -> None:
    pixels = random_pixels(20, side=32)
    blurred = Blur()(pixels, labels_of(pixels), 0).float()
    assert torch.allclose(blurred.mean((1, 2, 3)), pixels.float().mean((1, 2, 3)), atol=3)
    assert (blurred.std((1, 2, 3)) < 0.3 * pixels.float().std((1, 2, 3))).all()
    flat = torch.full((1, 3, 9, 9), 255, dtype=torch.uint8)
    assert torch.equal(Blur(0.5)(flat, labels_of(flat), 0), flat)


def test_pixel_noise_has_its_scale_and_stays_in_range() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    difference = PixelNoise(0.1)(grey, labels_of(grey), 0).float() - 128
    assert abs(float(difference.std()) / 25.5 - 1) < 0.02
    assert abs(float(difference.mean())) < 0.5
    assert abs(float(np.corrcoef(difference[:, :2].transpose(0, 1).flatten(1).numpy())[0, 1])) < 0.03
    white = torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)
    noisy = PixelNoise(0.1)(white, labels_of(white), 0).float()
    assert float((noisy == 255).float().mean()) > 0.4  # cut off, not wrapped around
    assert float(noisy.min()) > 255 - 6 * 25.5


def patches(image: Tensor, side: int) -> list[bytes]:
    height, width = image.shape[1:]
    return sorted(
        image[:, top : top + side, left : left + side].numpy().tobytes()
        for top in range(0, height, side)
        for left in range(0, width, side)
    )


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, None), (16, 8, None), (27, 18, 9), (6, 6, 1)])
def test_patch_shuffle_keeps_the_patches(
    random_pixels: RandomPixels, height: int, width: int, patch: int | None
) -> None:
    pixels = random_pixels(5, side=27)[:, :, :height, :width]
    shuffled = PatchShuffle(patch)(pixels, labels_of(pixels), 1)
    side = patch or min(height, width) // 4
    assert [patches(image, side) for image in shuffled] == [patches(image, side) for image in pixels]


def test_patch_shuffle_never_leaves_all_patches_in_place() -> None:
    pixels = numbered(8, 8, n=200)
    shuffled = PatchShuffle(4)(pixels, labels_of(pixels), 0)  # four patches: one order in 24 is the old one
    assert (shuffled != pixels).flatten(1).any(1).all()
    assert len(shuffled.unique(dim=0)) == 23
    halves = numbered(4, 8)
    assert torch.equal(PatchShuffle(4)(halves, labels_of(halves), 0), halves.roll(4, -1))


@pytest.mark.parametrize(
    ("height", "width", "patch", "remedy"),
    [
        (27, 27, None, "a quarter of the side: give a patch of 1 or 3 or 9 pixels"),
        (8, 8, 3, "patches of 3 pixels: give a patch of 1 or 2 or 4 pixels"),
        (8, 8, 8, "patches of 8 pixels: give a patch of 1 or 2 or 4 pixels"),
        (8, 12, 8, "give a patch of 1 or 2 or 4 pixels"),
        (2, 4, None, "give a patch of 1 or 2 pixels"),
        (1, 1, None, "give larger images"),
    ],
)
def test_patches_that_do_not_fit_are_refused(height: int, width: int, patch: int | None, remedy: str) -> None:
    pixels = numbered(height, width) if height * width <= 256 else torch.zeros(1, 1, height, width, dtype=torch.uint8)
    with pytest.raises(WeightsmithError, match=f"--corruption patch_shuffle cannot cut .*{height}x{width}.*{remedy}$"):
        PatchShuffle(patch)(pixels, labels_of(pixels), 0)


@given(
    st.sampled_from([(8, 8), (7, 9), (2, 2), (1, 2), (5, 1), (16, 16)]),
    st.sampled_from([0.5, 0.3, 0.1, 1e-9]),
    st.integers(0, 10**6),
)
def test_region_swap_moves_two_equal_rectangles(size: tuple[int, int], share: float, seed: int) -> None:
    height, width = size
    pixels = numbered(height, width)
    swapped = RegionSwap(share)(pixels, labels_of(pixels), seed)
    tall, wide = (max(1, min(round(share * side), side // 2)) for side in size)
    moved = (swapped != pixels)[0, 0]
    assert int(moved.sum()) == 2 * tall * wide  # fewer if they overlapped
    assert moved[:tall, :wide].all()
    place = int(swapped[0, 0, 0, 0])
    top, left = divmod(place, width)
    assert torch.equal(swapped[..., :tall, :wide], pixels[..., top : top + tall, left : left + wide])
    assert torch.equal(swapped[..., top : top + tall, left : left + wide], pixels[..., :tall, :wide])
    assert torch.equal(RegionSwap(share)(swapped, labels_of(pixels), seed), pixels)


def test_region_swap_reaches_every_place() -> None:
    pixels = numbered(4, 4, n=400)
    places = RegionSwap(0.5)(pixels, labels_of(pixels), 0)[:, 0, 0, 0].unique().tolist()
    assert places == [2, 6, 8, 9, 10]


def test_a_single_pixel_has_no_two_regions() -> None:
    with pytest.raises(WeightsmithError, match=r"--corruption region_swap finds no two regions .*1x1.*larger"):
        RegionSwap()(numbered(1, 1), torch.zeros(1).long(), 0)


def test_other_image_is_one_of_another_class() -> None:
    labels = torch.tensor([4, 1, 1, 4, 9, 1])
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).repeat(1, 3, 2, 2)
    seen: dict[int, set[int]] = {}
    for seed in range(100):
        chosen = OtherImage()(pixels, labels, seed)
        assert (chosen == chosen[:, :1, :1, :1]).all()
        assert (labels[chosen[:, 0, 0, 0].long()] != labels).all()
        for place, other in enumerate(chosen[:, 0, 0, 0].tolist()):
            seen.setdefault(place, set()).add(other)
    assert seen == {place: set(torch.where(labels != own)[0].tolist()) for place, own in enumerate(labels.tolist())}


def test_other_image_needs_two_classes_and_the_whole_set(random_pixels: RandomPixels) -> None:
    pixels = random_pixels(4)
    with pytest.raises(WeightsmithError, match=r"--corruption other_image needs images of two classes.*class 2: give"):
        OtherImage()(pixels, torch.full((4,), 2), 0)
    with pytest.raises(WeightsmithError, match=r"--corruption other_image .*whole set.*give all images at once"):
        OtherImage()(pixels, labels_of(pixels), 0, first=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: corruption("grayscale"), "--corruption grayscale is not known: did you mean 'greyscale'"),
        (lambda: corruption("blur", sigam=1), "--corruption blur has no hyper-parameter 'sigam': did you mean 'sigma'"),
        (lambda: corruption("greyscale", scale=1), "greyscale has no hyper-parameter 'scale': it has none"),
        (lambda: Blur(0), "--corruption blur needs a positive sigma, not 0: give"),
        (lambda: Blur(math.inf), "--corruption blur needs a positive sigma, not inf: give"),
        (lambda: PixelNoise(math.nan), "--corruption pixel_noise needs a positive scale, not nan: give"),
        (
            lambda: corruption("pixel_noise", scale=-1.0),
            "--corruption pixel_noise needs a positive scale, not -1: give",
        ),
        (lambda: PatchShuffle(0), "--corruption patch_shuffle needs a patch of at least one pixel, not 0: give"),
        (lambda: RegionSwap(0.6), r"--corruption region_swap needs a share .* up to 0\.5, not 0\.6"),
        (lambda: RegionSwap(0), "--corruption region_swap needs a share of the side above 0"),
        (lambda: RegionSwap(math.nan), "--corruption region_swap needs a share of the side above 0"),
    ],
)
def test_bad_hyper_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(WeightsmithError, match=message):
        make()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_bad_images_are_named(random_pixels: RandomPixels, name: str) -> None:
    pixels, labels, corrupt = random_pixels(3), torch.arange(3), corruption(name)
    for images in (pixels.float(), pixels[0], pixels[:, :2]):
        with pytest.raises(WeightsmithError, match=f"--corruption {name} takes images as .*uint8, not"):
            corrupt(images, labels, 0)
    with pytest.raises(WeightsmithError, match=f"--corruption {name} was given 3 images and labels of shape \\(2,\\)"):
        corrupt(pixels, labels[:2], 0)
    with pytest.raises(WeightsmithError, match="--seed must be at least 0, not -1"):
        corrupt(pixels, labels, -1)


def test_embedding_noise_is_still_among_the_views() -> None:
    noise = ws.views.embedding_noise(2.0, samples=3, seed=1)
    assert noise == EmbeddingNoise(2.0, 3, 1)
    drawn = noise.draw(torch.zeros(4, 5), 0.5, 7)
    assert drawn.shape == (3, 4, 5)
    assert torch.equal(drawn, noise.draw(torch.zeros(4, 5), 0.5, 7))
    assert not torch.equal(drawn, noise.draw(torch.zeros(4, 5), 0.5, 8))
    with pytest.raises(WeightsmithError, match="--num-ablations"):
        EmbeddingNoise(samples=0)
