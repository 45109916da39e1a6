"""Which images editors preserve, and that remembering them never mixes up models, images or their order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.delta import Delta, Dense, weights_hash
from weightsmith.edit import preserved
from weightsmith.edit.preserved import right_ones
from weightsmith.errors import HeldOutError
from weightsmith.measure import predict
from weightsmith.models import Model


def expected(model: Model, images: ImageSet) -> np.ndarray:
    return images.positions[predict(model, images).right.numpy()]


@pytest.fixture
def images(random_set: Callable[..., ImageSet]) -> ImageSet:
    return random_set(60)


def test_right_ones_are_remembered(
    tiny_model: Callable[..., Model], images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("vit")
    first = right_ones(model, images)
    assert np.array_equal(first.positions, expected(model, images))
    monkeypatch.setattr(preserved, "predict", None)
    assert np.array_equal(right_ones(model, images).positions, first.positions)


def test_the_order_of_the_images_is_the_askers(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    model = tiny_model("vit")
    right_ones(model, images)
    turned = images.subset(np.arange(len(images))[::-1])
    assert np.array_equal(right_ones(model, turned).positions, expected(model, turned))


def test_an_edited_model_is_another_model(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    model = tiny_model("vit")
    before = right_ones(model, images)
    name, _, _ = model.linear("classifier.value")
    weight = model.module.get_parameter(name)
    with Delta({name: Dense(-2 * weight.detach().clone())}, weights_hash(model)).on(model):
        after = right_ones(model, images)
        assert np.array_equal(after.positions, expected(model, images))
    assert not np.array_equal(before.positions, after.positions)


def test_sealed_images_stay_sealed_though_they_are_remembered(
    tiny_model: Callable[..., Model], images: ImageSet
) -> None:
    model = tiny_model("vit")
    right_ones(model, images)
    with pytest.raises(HeldOutError):
        right_ones(model, images.seal())


def test_only_so_many_are_remembered(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    model = tiny_model("vit")
    torch.manual_seed(0)
    for start in range(20):
        right_ones(model, images.subset(np.arange(start, 60)))
    assert len(preserved._known) <= preserved._KNOWN
