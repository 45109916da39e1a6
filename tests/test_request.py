from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError
from weightsmith.request import ImageRequest, load_requests, save_requests, stack_images, targets


@pytest.fixture
def requests(random_pixels: Callable[..., Tensor]) -> list[ImageRequest]:
    pixels = random_pixels(3)
    return [ImageRequest(f"val/{i}", pixels[i], target=i, predicted=2 - i, source=f"s{i}") for i in range(3)]


def test_images_and_targets_keep_the_order(requests: list[ImageRequest], random_pixels: Callable[..., Tensor]) -> None:
    assert torch.equal(stack_images(requests), random_pixels(3))
    assert torch.equal(stack_images(requests[::-1]), random_pixels(3).flip(0))
    assert torch.equal(targets(requests), torch.tensor([0, 1, 2]))
    assert targets([]).dtype == torch.int64


@pytest.mark.parametrize(
    "image", [torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_an_image_of_another_form_is_refused(image: Tensor) -> None:
    with pytest.raises(WeightsmithError, match="image of request val/9"):
        ImageRequest("val/9", image, target=0, predicted=1)


def test_a_negative_class_is_refused() -> None:
    with pytest.raises(WeightsmithError, match=r"val/9 is -1: classes count from 0"):
        ImageRequest("val/9", torch.zeros(3, 8, 8, dtype=torch.uint8), target=-1, predicted=1)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(WeightsmithError, match="list of requests is empty"):
        stack_images([])


def test_images_of_different_size_are_refused(requests: list[ImageRequest]) -> None:
    odd = ImageRequest("val/9", torch.zeros(3, 8, 9, dtype=torch.uint8), target=0, predicted=1)
    with pytest.raises(WeightsmithError, match="differ in size"):
        stack_images([*requests, odd])


def test_save_and_load_are_inverse(requests: list[ImageRequest], tmp_path: Path) -> None:
    save_requests(tmp_path / "requests.safetensors", requests)
    back = load_requests(tmp_path / "requests.safetensors")
    assert len(back) == len(requests)
    for one, other in zip(requests, back, strict=True):
        assert torch.equal(one.image, other.image)
        assert (one.name, one.target, one.predicted, one.source) == (
            other.name,
            other.target,
            other.predicted,
            other.source,
        )


def test_a_file_that_is_missing_or_damaged_is_named(requests: list[ImageRequest], tmp_path: Path) -> None:
    path = tmp_path / "requests.safetensors"
    with pytest.raises(WeightsmithError, match=r"requests\.safetensors does not exist"):
        load_requests(path)
    save_requests(path, requests)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsmithError, match=r"requests\.safetensors is damaged"):
        load_requests(path)
