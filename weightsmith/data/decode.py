"""An encoded image as a person would see it: upright, at 8 bits a channel, on white where it is transparent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

GREY_MODES = ("1", "L", "LA", "La", "I")
"""PIL's modes without colour, beside those that begin with I;16."""

_WHITE = (255, 255, 255, 255)


def decoded(file: str | Path | IO[bytes]) -> Image.Image:
    """The image of a file, in PIL's mode L or RGB, or in another that converts to them without loss.

    Turned as its EXIF says; 16 bits a pixel are scaled to 8 (65535 is white), not cut off; what is transparent lies on
    white; of an animation the first frame.

    Raises:
        ValueError: pixels of 32 bits, whose black and white nobody knows.
        Exception: whatever a decoder raises for a damaged file, or PIL for one of more pixels than it deems safe.
    """
    with bombs_refused(), Image.open(file) as image:
        image.load()
        return _on_white(_as_bytes(_upright(image)))


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Raise where PIL only warns that an image has more pixels than it deems safe; pass over what it says of less."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # of damage beside the pixels, "Corrupt EXIF data"
        yield


def is_grey(mode: str) -> bool:
    """Whether images of this PIL mode have no colour."""
    return mode in GREY_MODES or mode.startswith("I;16")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, which every viewer passes over; the pixels are whole
        return image


def _as_bytes(image: Image.Image) -> Image.Image:
    """The image at 8 bits a channel, where plain conversion would cut values off."""
    # Older releases of PIL open 16-bit grey PNG as I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, save it with 8 or 16")
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """The image on a white ground, where it is transparent anywhere."""
    if "transparency" not in image.info and not image.mode.endswith(("A", "a")):
        return image
    grey = is_grey(image.mode)
    layer = image.convert("RGBA")
    seen = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer)
    return seen.convert("L" if grey else "RGB")
