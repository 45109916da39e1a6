"""From stored pixels to what a network reads: resize, grey to colour, normalise. Tensors only, no torchvision."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.errors import WeightsmithError


@dataclass(frozen=True)
class Preprocess:
    """uint8 images of any size to (n, channels, size, size) float32, normalised by channel.

    Attributes:
        size: side of the square image that the network reads, pixels.
        channels: 1 or 3.
        mean, std: by channel, of values scaled to [0, 1].
    """

    size: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # the defaults are those of a colour image
            object.__setattr__(self, name, tuple(getattr(self, name))[: self.channels])
            if len(getattr(self, name)) != self.channels:
                raise WeightsmithError(f"preprocessing of {self.channels} channels needs as many entries in its {name}")

    def __call__(self, pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Args: pixels: (n, channels, height, width) uint8, channels 1 or 3.

        Resizing is bilinear with antialiasing, as Pillow and Hugging Face image processors do it.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise WeightsmithError(
                f"images must be (n, 1 or 3, height, width) uint8, not {tuple(pixels.shape)} {pixels.dtype}: "
                "convert them"
            )
        images = pixels.to(device).float()
        if images.shape[1] != self.channels:
            images = images.expand(-1, 3, -1, -1) if self.channels == 3 else images.mean(1, keepdim=True)
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images / 255 - mean) / std

    def describe(self) -> dict[str, object]:
        """What decides the numbers that come out, for a fingerprint."""
        return asdict(self)

    def to_hugging_face(self) -> dict[str, object]:
        """The content of `preprocessor_config.json`, for users who load the folder with plain transformers."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_hugging_face(cls, entries: dict[str, object], size: int, channels: int) -> Preprocess:
        """Read mean and std from a `preprocessor_config.json`; the size is the network's own.

        Raises:
            ValueError: they are no numbers.
        """

        def by_channel(key: str) -> tuple[float, ...]:
            values = entries.get(key) or [0.5] * channels
            if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"{key} must be a list of numbers")
            return tuple(float(value) for value in values)[:channels]

        return cls(size, channels, by_channel("image_mean"), by_channel("image_std"))


@dataclass(frozen=True)
class Features(Preprocess):
    """Rows of numbers to what a network reads: the numbers as they are.

    A row of d features is held as an image of one pixel with d channels, so that a table is split, sealed, trained on and
    predicted by what does so for images.
    """

    size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", ())
        object.__setattr__(self, "std", ())

    def __call__(self, pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Args: pixels: (n, features, 1, 1) float32, which come back on the device."""
        if pixels.dtype != torch.float32 or tuple(pixels.shape[1:]) != (self.channels, 1, 1):
            raise WeightsmithError(
                f"this network reads tables of {self.channels} features, and the data are {tuple(pixels.shape[1:])} "
                f"{str(pixels.dtype).removeprefix('torch.')}: give a CSV table of as many features"
            )
        return pixels.to(device)

    def to_hugging_face(self) -> dict[str, object]:
        """An image processor that changes nothing."""
        off = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), False)
        return {"image_processor_type": "ViTImageProcessor", **off}
