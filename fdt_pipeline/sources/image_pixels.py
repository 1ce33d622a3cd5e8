"""From an image file of any mode to u8[h w c].

The rule: EXIF orientation is applied; of animations the first frame is taken; 16-bit gray is rounded to 8 bits,
65535 -> 255; transparent images are laid on black, the value that shifts pad with; palettes, CMYK and the like
become RGB; 1-bit becomes 0 and 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .source import U8

_WIDE_GRAY = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_GRAY = frozenset({"1", "L", "LA", "La"}) | _WIDE_GRAY
_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})


def is_gray(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in _GRAY


def image_size(path: Path) -> tuple[int, int]:
    """(h, w) once turned upright."""
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (height, width)


def read_pixels(path: Path, channels: int) -> U8:
    """u8[h w channels], channels 1 or 3; ValueError naming the file if it does not decode."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = _pixels(upright, channels)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], channels)))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise ValueError(f"{path}: not a readable image ({error}); replace or remove it") from error


def _pixels(image: Image.Image, channels: int) -> U8:
    """u8[h w] or u8[h w channels]."""
    if image.mode in _WIDE_GRAY:
        return _rounded_to_8_bits(np.asarray(image))
    if image.mode in _ALPHA or "transparency" in image.info:
        return _on_black(np.asarray(image.convert("LA" if channels == 1 else "RGBA")))
    if image.mode == "F":
        raise ValueError("its floating-point pixels have no fixed range: save it with 8 or 16 bits")
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _rounded_to_8_bits(values: npt.NDArray[np.integer]) -> U8:
    """0..65535 -> 0..255, the inverse of multiplying by 257."""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"expected 16-bit pixels 0..65535, got {values.min()}..{values.max()}")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_black(pixels: U8) -> U8:
    """u8[h w c+1], alpha last -> u8[h w c]."""
    color, alpha = pixels[..., :-1].astype(np.uint16), pixels[..., -1:]
    return ((color * alpha + 127) // 255).astype(np.uint8)
