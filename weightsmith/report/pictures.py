"""Images of a data set as text that a page can hold in itself, small enough that thirty of them weigh little."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

MOST_SIDE = 192
"""Longest side of an embedded image; cards show images at 160 pixels, so this is sharp enough."""

PIXELATED_BELOW = 96
"""Images with shorter sides than this are enlarged pixel by pixel rather than smeared."""


def image_uri(pixels: np.ndarray) -> str:
    """A (channels, height, width) uint8 image as a data URI.

    Small images stay lossless (PNG); larger ones are shrunk to `MOST_SIDE` and stored as JPEG.
    """
    image = Image.fromarray(np.ascontiguousarray(shown(pixels)))
    buffer = io.BytesIO()
    if max(image.size) < PIXELATED_BELOW:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def is_small(pixels: np.ndarray) -> bool:
    """Whether the image should be enlarged crisply, pixel by pixel."""
    height, width = (int(side) for side in pixels.shape[1:])
    return height < PIXELATED_BELOW and width < PIXELATED_BELOW


def shown(pixels: np.ndarray) -> np.ndarray:
    """What is shown of (channels, height, width): (height, width) of the first channel of one or two, in grey, or
    (height, width, 3) of the first three.
    """
    return pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0)
