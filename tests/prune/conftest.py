from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from weightsmith.data.images import ImageSet
from weightsmith.models import Model


@pytest.fixture
def images(random_set: Callable[..., ImageSet]) -> ImageSet:
    """More keys than any tiny network has entries in one."""
    made: ImageSet = random_set(60)
    return made


@pytest.fixture
def double(tiny_model: Callable[..., Model]) -> Callable[[str], Model]:
    """`double(family_name)`: a tiny model in float64, in which what is exact can be told from what is near."""

    def make(family_name: str = "vit") -> Model:
        model: Model = tiny_model(family_name)
        return replace(model, module=model.module.double())

    return make
