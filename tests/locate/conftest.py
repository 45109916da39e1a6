"""A ViT whose patches can be painted over one by one, and what it says of three images."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightsmith.locate.astra import AstraOptions, Attribution, attribute
from weightsmith.locate.steering import Steering, steering_vectors
from weightsmith.models import Model, families, load

WITH_PATCHES = sorted(name for name, family in families().items() if family.has_tokens and family.reads == "images")


def build_vit(image_size: int = 11, patch_size: int = 3, seed: int = 0) -> Model:
    """A ViT of 9 patches whose last two rows and columns of pixels fill no patch."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=image_size, patch_size=patch_size, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = ViTForImageClassification(config)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn_like(parameter)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.2 * noise)
                else:
                    parameter.copy_(noise * (1.5 / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.3))
    return load(module)


def paint(model: Model, inputs: Tensor, keep: list[bool]) -> Tensor:
    """One preprocessed image (1, c, s, s) with the patches that are not kept painted over, one after the other."""
    size = model.module.config.patch_size
    side = math.isqrt(len(keep))
    inputs = inputs.clone()
    for number, kept in enumerate(keep):
        if not kept:
            row, column = number // side * size, number % side * size
            for channel, (mean, std) in enumerate(zip(model.preprocess.mean, model.preprocess.std, strict=True)):
                inputs[0, channel, row : row + size, column : column + size] = (0 - mean) / std
    return inputs


@pytest.fixture(scope="session")
def vit() -> Callable[..., Model]:
    """`vit(image_size=11, patch_size=3, seed=0)`: a fresh random ViT of 3 blocks."""
    return build_vit


@pytest.fixture(scope="session")
def painted() -> Callable[..., Tensor]:
    """`painted(model, inputs, keep)`, see `paint`."""
    return paint


@pytest.fixture(params=[*WITH_PATCHES, "nine patches"])
def looked(request: pytest.FixtureRequest, tiny_model: Callable[..., Model]) -> Model:
    """Each network with patches in turn."""
    model: Model = build_vit() if request.param == "nine patches" else tiny_model(request.param)
    return model


@pytest.fixture(scope="session")
def pixels(random_pixels: Callable[..., Tensor]) -> Tensor:
    return random_pixels(3, seed=1, side=10)


@pytest.fixture(scope="session")
def calibration(random_pixels: Callable[..., Tensor]) -> Tensor:
    return random_pixels(5, seed=2, side=10)


@pytest.fixture(scope="session")
def measured(pixels: Tensor, calibration: Tensor) -> tuple[Model, Attribution, Steering]:
    """The ViT of nine patches, its attribution of three images and the steering from it; no test may change them."""
    model = build_vit()
    targets, names = torch.tensor([1, 0, 3]), ("val/0", "val/1", "val/2")
    attribution = attribute(model, pixels, targets, names, AstraOptions(masks=24, top=3, batch=50))
    return model, attribution, steering_vectors(model, pixels, attribution, calibration)
