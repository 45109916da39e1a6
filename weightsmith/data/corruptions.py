"""What hides information in an image: corruptions of its pixels, and noise on the embeddings of its patches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean


class Corruption(Protocol):
    """Hides something that images show. A frozen dataclass, whose fields are its hyper-parameters.

    Attributes:
        name: what `--corruption` calls it.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __call__(self, pixels: Tensor, labels: Tensor, seed: int, first: int = 0) -> Tensor:
        """The corrupted images, in a tensor of their own; the same for the same seed.

        Image i of the call is corrupted by random numbers of (seed, first + i) alone, so that a set corrupted in pieces
        comes out as it does at once, and what follows an image does not matter. `OtherImage` needs the whole set.

        Args:
            pixels: (n, channels, height, width) uint8, channels 1 or 3.
            labels: (n,) int64 class of each image.
            first: number of the first image of the call within its set.

        Raises:
            WeightsmithError: images that cannot be corrupted so.
        """
        ...


class _ImageByImage(ABC):
    """A corruption that needs to see one image at a time. Nothing is computed over a batch: its rounding may depend on
    the size of the batch.
    """

    name: ClassVar[str]

    def __call__(self, pixels: Tensor, labels: Tensor, seed: int, first: int = 0) -> Tensor:
        """See `Corruption`."""
        _check(self.name, pixels, labels, seed)
        out = torch.empty_like(pixels)
        for place, image in enumerate(pixels):
            out[place] = self._corrupted(image, np.random.default_rng((seed, first + place)))
        return out

    @abstractmethod
    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """One image (channels, height, width) uint8."""


@dataclass(frozen=True)
class Greyscale(_ImageByImage):
    """Luma (ITU-R 601) 0.299 R + 0.587 G + 0.114 B in every channel: the colours are gone, the brightness stays.

    Raises `WeightsmithError` where all images are grey already; a grey one among others stays as it is.
    """

    name: ClassVar[str] = "greyscale"

    def __call__(self, pixels: Tensor, labels: Tensor, seed: int, first: int = 0) -> Tensor:
        """See `Corruption`."""
        out = super().__call__(pixels, labels, seed, first)
        if pixels.shape[1] == 1 or (len(pixels) and torch.equal(out, pixels)):
            raise WeightsmithError(
                "--corruption greyscale changes nothing, because the images are grey: give images in colour or another "
                "corruption, blur say"
            )
        return out

    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:  # noqa: ARG002  (nothing is random)
        if len(image) == 1:
            return image
        red, green, blue = image.int()  # whole numbers, so that a grey pixel keeps its level
        luma: Tensor = (299 * red + 587 * green + 114 * blue + 500) // 1000
        return luma.to(torch.uint8).expand_as(image)


@dataclass(frozen=True)
class Blur(_ImageByImage):
    """Gaussian blur, separable, reflected at the edges: fine shapes go, coarse brightness and colour stay.

    The kernel ends at 3σ, or where the reflection has no more pixels to give: one less than the side.

    Attributes:
        sigma: standard deviation of the Gaussian as a share of the image's shorter side.
    """

    name: ClassVar[str] = "blur"
    sigma: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(self.name, "sigma", self.sigma, "0.1, a tenth of the side")

    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:  # noqa: ARG002  (nothing is random)
        height, width = image.shape[1:]
        sigma = self.sigma * min(height, width)
        down, across = (_blurring(side, sigma).to(image.device) for side in (height, width))
        return _to_bytes(down @ image.float() @ across.T)


@lru_cache(maxsize=8)
def _blurring(side: int, sigma: float) -> Tensor:
    """(side, side): one row a pixel, the weights of the pixels that are blurred into it."""
    radius = min(math.ceil(3 * sigma), side - 1)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-((offsets / sigma) ** 2) / 2)
    matrix = np.zeros((side, side))
    for pixel in range(side):
        places = np.abs(pixel + offsets)  # reflected at the first pixel, then at the last
        np.add.at(matrix[pixel], np.minimum(places, 2 * (side - 1) - places), weights / weights.sum())
    return torch.from_numpy(matrix).float()


@dataclass(frozen=True)
class PixelNoise(_ImageByImage):
    """Gaussian noise on every channel of every pixel, cut to 0..255: fine shapes go, areas keep their colour.

    Attributes:
        scale: standard deviation of the noise as a share of the range of 255.
    """

    name: ClassVar[str] = "pixel_noise"
    scale: float = 0.5

    def __post_init__(self) -> None:
        _check_positive(self.name, "scale", self.scale, "0.5, half of the range")

    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:
        noise = torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32))
        return _to_bytes(image + noise.to(image.device) * (255 * self.scale))


@dataclass(frozen=True)
class PatchShuffle(_ImageByImage):
    """The square patches of the image in another, random order: what is within a patch stays, where it was is lost.

    Attributes:
        patch: side of a patch in pixels, which must divide both sides of the image; None takes a quarter of the
            shorter one.
    """

    name: ClassVar[str] = "patch_shuffle"
    patch: int | None = None

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch < 1:
            raise WeightsmithError(
                f"--corruption patch_shuffle needs a patch of at least one pixel, not {self.patch}: give one that "
                "divides the sides of the images"
            )

    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:
        channels, height, width = image.shape
        patch = self._side(height, width)
        rows, columns = height // patch, width // patch
        order = random.permutation(rows * columns)
        while (order == np.arange(len(order))).all():
            order = random.permutation(rows * columns)
        grid = image.reshape(channels, rows, patch, columns, patch).permute(1, 3, 0, 2, 4).flatten(0, 1)
        moved: Tensor = grid[torch.from_numpy(order).to(image.device)].reshape(rows, columns, channels, patch, patch)
        return moved.permute(2, 0, 3, 1, 4).reshape(image.shape)

    def _side(self, height: int, width: int) -> int:
        """Side of a patch of images of this size."""
        common = math.gcd(height, width)
        patch, left = divmod(min(height, width), 4) if self.patch is None else (self.patch, 0)
        if not left and patch and common % patch == 0 and patch < max(height, width):
            return patch
        fits = [side for side in range(1, common + 1) if common % side == 0 and side < max(height, width)]
        what = "a quarter of the side" if self.patch is None else f"patches of {self.patch} pixels"
        remedy = f"give a patch of {' or '.join(map(str, fits))} pixels" if fits else "give larger images"
        raise WeightsmithError(
            f"--corruption patch_shuffle cannot cut images of {height}x{width} pixels into several patches by {what}: "
            f"{remedy}"
        )


@dataclass(frozen=True)
class RegionSwap(_ImageByImage):
    """The upper left corner and an equal rectangle elsewhere, drawn at random, change places; they never overlap.

    Attributes:
        share: sides of the rectangle as a share of the image's, at most 0.5; at least one pixel each.
    """

    name: ClassVar[str] = "region_swap"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise WeightsmithError(
                f"--corruption region_swap needs a share of the side above 0 and up to 0.5, not {self.share:g}: two "
                "larger regions would overlap"
            )

    def _corrupted(self, image: Tensor, random: np.random.Generator) -> Tensor:
        height, width = image.shape[1:]
        tall, wide = (max(min(round(self.share * side), side // 2), 1) for side in (height, width))
        free = np.ones((height - tall + 1, width - wide + 1), dtype=bool)  # where the other one may begin
        free[:tall, :wide] = False
        places = np.argwhere(free)
        if not len(places):
            raise WeightsmithError(
                f"--corruption region_swap finds no two regions in images of {height}x{width} pixels: give larger ones"
            )
        top, left = places[random.integers(len(places))].tolist()
        here = (slice(None), slice(0, tall), slice(0, wide))
        there = (slice(None), slice(top, top + tall), slice(left, left + wide))
        out = image.clone()
        out[here], out[there] = image[there], image[here]
        return out


@dataclass(frozen=True)
class OtherImage:
    """Another image of the set, of a different class, drawn at random: nothing of the image itself stays.

    What takes an image's place depends on the whole set, so the set must be given at once.
    """

    name: ClassVar[str] = "other_image"

    def __call__(self, pixels: Tensor, labels: Tensor, seed: int, first: int = 0) -> Tensor:
        """See `Corruption`. Raises `WeightsmithError` for a single class, and for a piece of a set (`first` not 0)."""
        _check(self.name, pixels, labels, seed)
        if first:
            raise WeightsmithError(
                "--corruption other_image draws from the whole set and cannot corrupt a piece of it: give all images "
                "at once"
            )
        classes, number, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
        if len(classes) == 1:
            raise WeightsmithError(
                f"--corruption other_image needs images of two classes, and all {len(labels)} are of class "
                f"{classes[0]}: give images of another class too, or another corruption"
            )
        by_class = np.argsort(number, kind="stable")
        begins = np.cumsum(counts) - counts
        chosen = np.empty(len(labels), dtype=np.int64)
        for place, own in enumerate(number):
            draw = np.random.default_rng((seed, place)).integers(len(labels) - counts[own])
            chosen[place] = by_class[draw if draw < begins[own] else draw + counts[own]]  # past the images of its class
        return pixels[torch.from_numpy(chosen).to(pixels.device)]


_KINDS: tuple[type[Corruption], ...] = (Greyscale, Blur, PixelNoise, PatchShuffle, RegionSwap, OtherImage)
_BY_NAME = {kind.name: kind for kind in _KINDS}

CORRUPTIONS: tuple[str, ...] = tuple(_BY_NAME)
"""What `--corruption` may name."""


def corruption(name: str, **given: Any) -> Corruption:
    """A corruption by name, with its hyper-parameters.

    Raises:
        WeightsmithError: an unknown name, a hyper-parameter that it has not, or a bad value of one.
    """
    if name not in _BY_NAME:
        raise WeightsmithError(f"--corruption {name} is not known: {did_you_mean(name, CORRUPTIONS)}")
    kind = _BY_NAME[name]
    known = [field.name for field in fields(kind)]
    unknown = [key for key in given if key not in known]
    if unknown:
        remedy = did_you_mean(unknown[0], known) if known else "it has none"
        raise WeightsmithError(f"--corruption {name} has no hyper-parameter {unknown[0]!r}: {remedy}")
    return kind(**given)


@dataclass(frozen=True)
class EmbeddingNoise:
    """Gaussian noise on the embeddings of the patches (every token but the special ones), as ROME's tracing adds it.

    Attributes:
        scale: standard deviation in units of σ, the standard deviation of the clean embeddings at those positions.
        samples: noise samples an image; the same for every site (common random numbers).
        seed: of the noise.
    """

    scale: float = 3.0
    samples: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.scale <= 0:
            raise WeightsmithError(
                f"embedding noise needs at least one sample and a positive scale, not {self.samples} and {self.scale:g}: "
                "give --num-ablations 10, and 3 standard deviations"
            )

    def draw(self, clean: Tensor, sigma: float, index: int) -> Tensor:
        """(samples, positions, width) noise for image number `index` with embeddings `clean` (positions, width)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        noise = torch.randn((self.samples, *clean.shape), generator=generator)
        return (noise * (self.scale * sigma)).to(clean.device, clean.dtype)


def embedding_noise(scale: float = 3.0, samples: int = 32, seed: int = 0) -> EmbeddingNoise:
    """Noise of `scale` standard deviations on the patch embeddings."""
    return EmbeddingNoise(scale, samples, seed)


def _check(name: str, pixels: Tensor, labels: Tensor, seed: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise WeightsmithError(
            f"--corruption {name} takes images as (n, 1 or 3, height, width) uint8, not {tuple(pixels.shape)} "
            f"{pixels.dtype}: give them as `ImageSet.pixels` does"
        )
    if labels.shape != (len(pixels),):
        raise WeightsmithError(
            f"--corruption {name} was given {len(pixels)} images and labels of shape {tuple(labels.shape)}: give one "
            "label an image"
        )
    if seed < 0:
        raise WeightsmithError(f"--seed must be at least 0, not {seed}: give 0 or more")


def _check_positive(name: str, field: str, value: float, example: str) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise WeightsmithError(f"--corruption {name} needs a positive {field}, not {value:g}: give {example}")


def _to_bytes(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)
