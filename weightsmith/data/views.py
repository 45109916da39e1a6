"""Other views of the same image: augmentation that keeps the class. What hides the class is in `corruptions`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.data.corruptions import EmbeddingNoise, embedding_noise
from weightsmith.errors import WeightsmithError, did_you_mean

__all__ = [
    "EmbeddingNoise",
    "View",
    "dihedral",
    "embedding_noise",
    "light",
    "natural",
    "natural_colour",
    "random_view",
    "unchanged",
    "view",
]

View = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images (n, channels, height, width) float in [0, 255] to one random view of each, same shape."""


def light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 1/14 of the side, turn by up to 10°, change brightness by up to 10%: safe for most images."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, shift_x, shift_y = uniform(-1, 1) * math.pi / 18, uniform(-1, 1) / 7, uniform(-1, 1) / 7
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)], 1)
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (moved * uniform(0.9, 1.1).to(images.device).view(-1, 1, 1, 1)).clamp(0, 255)


def dihedral(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight flips and quarter turns: for images without an up, histology say. Square images only."""
    if images.shape[-1] != images.shape[-2]:
        raise WeightsmithError("the dihedral views need square images: use the light views")
    choice = torch.randint(0, 8, (len(images),), generator=generator)
    out = torch.empty_like(images)
    for turn in range(8):
        chosen = choice == turn
        piece = images[chosen]
        out[chosen] = torch.rot90(piece.flip(-1) if turn >= 4 else piece, turn % 4, (2, 3))
    return out


def natural(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image and shift by up to an eighth of the side: for photographs, as CIFAR-10 is trained."""
    n = len(images)
    mirrored = torch.rand(n, generator=generator) < 0.5
    shift = (torch.rand(2, n, generator=generator) * 2 - 1) / 4
    zero = torch.zeros(n)
    across = torch.where(mirrored, -1.0, 1.0)
    matrix = torch.stack([torch.stack([across, zero, shift[0]], 1), torch.stack([zero, zero + 1, shift[1]], 1)], 1)
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def natural_colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """As `natural`; then brightness, contrast and saturation change by up to a fifth each: for few photographs a class.

    Contrast is the distance from the image's mean luma (ITU-R 601), saturation that from each pixel's; grey images have none.
    """
    n = len(images)
    moved = natural(images, generator)
    factors = (torch.rand(3, n, generator=generator) * 0.4 + 0.8).to(images.device)
    brightness, contrast, saturation = factors.view(3, n, 1, 1, 1)
    out = (moved * brightness).clamp(0, 255)
    out = torch.lerp(_luma(out).mean((2, 3), keepdim=True), out, contrast).clamp(0, 255)
    return torch.lerp(_luma(out), out, saturation).clamp(0, 255)


def _luma(images: Tensor) -> Tensor:
    """(n, 1, height, width), the brightness of each pixel; that of grey images is the image."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None]


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001  (the signature of a View)
    """The image itself."""
    return images


_VIEWS: dict[str, View] = {
    "none": unchanged,
    "light": light,
    "natural": natural,
    "natural-colour": natural_colour,
    "dihedral": dihedral,
}


def view(name: str, flag: str = "--views") -> View:
    """A kind of view by name. Raises `WeightsmithError` naming `flag` for an unknown one."""
    if name not in _VIEWS:
        raise WeightsmithError(f"{flag} {name} is not known: {did_you_mean(name, _VIEWS)}")
    return _VIEWS[name]


def random_view(pixels: Tensor, name: str, seed: int) -> Tensor:
    """One random view of each image, uint8 to uint8, the same for the same seed.

    Args:
        pixels: (n, channels, height, width) uint8.
        name: "none", "light", "natural", "natural-colour" or "dihedral".
    """
    generator = torch.Generator().manual_seed(seed)
    return view(name)(pixels.float(), generator).round().clamp(0, 255).to(torch.uint8)
