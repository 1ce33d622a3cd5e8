"""Images of one size: resized so that their shorter side has it, and cropped in the middle."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .source import U8


def resized(pixels: U8, size: int) -> U8:
    """u8[h w c] -> u8[size size c].

    The largest square in the middle, with half pixels where it lies between two, is resized by Pillow's LANCZOS filter,
    which averages over what a pixel covers, so that shrinking does not alias. What is enlarged is interpolated.
    """
    height, width, channels = pixels.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.asarray(square).reshape(size, size, channels)
