"""From the bytes of an image file, of any kind and mode, to u8[h w c].

The rule: EXIF orientation is applied; of animations the first frame is taken; 16-bit gray is rounded to 8 bits,
65535 -> 255, and of 16-bit colors the upper 8 bits are taken; transparent images are laid on black, the value that
shifts pad with; palettes, CMYK and the like become RGB; 1-bit becomes 0 and 255. What an image is, is seen from its
bytes, whatever its name says. An image of more pixels than Pillow's limit is refused before one of them is decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .source import U8

_WIDE_GRAY = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_GRAY = frozenset({"1", "L", "LA", "La"}) | _WIDE_GRAY
_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_PNG_BIT_DEPTH = 24  # its place in a PNG: signature, length and name of the first chunk, width, height, bit depth


class Picture(NamedTuple):
    """pixels u8[h w c]; plain: the extension of the file if it may be stored as it is: one upright 8-bit frame of just
    these channels. None where the rule changed anything."""

    pixels: U8
    plain: str | None


def decode_image(data: bytes, channels: int) -> Picture:
    """channels: 1 or 3. ValueError with the reason if it is no image, or a broken or too large one."""
    if not data:
        raise ValueError("not an image: the file has zero bytes")
    with _opened(io.BytesIO(data)) as image:
        if image.format == "PNG" and b"IEND" not in data:  # Pillow takes it where only the end is missing
            raise ValueError("image file is truncated: it has no end")
        is_plain = _is_plain(image, data, channels)
        upright = image if is_plain else ImageOps.exif_transpose(image)  # it copies, even what it does not turn
        pixels = _pixels(upright, channels)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    whole = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], channels)))
    return Picture(whole, _EXTENSIONS[str(image.format)] if is_plain else None)


def is_gray(file: BinaryIO) -> bool:
    """Seen from its header; ValueError if it is no image."""
    with _opened(file) as image:
        return image.mode in _GRAY


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of what is odd but can be read, as broken EXIF. One of bombs is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    try:
        with quiet(), Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        file.seek(0)
        raise ValueError(f"not an image: it begins with {file.read(16)!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large to decode within the memory budget ({error})") from None
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise ValueError(f"not a readable image ({' '.join(str(error).split()) or type(error).__name__})") from error


def _is_plain(image: Image.Image, data: bytes, channels: int) -> bool:
    return (
        image.format in _EXTENSIONS
        and image.mode == ("L" if channels == 1 else "RGB")
        and getattr(image, "n_frames", 1) == 1
        and "transparency" not in image.info
        and image.getexif().get(_ORIENTATION, 1) == 1
        and (image.format != "PNG" or data[_PNG_BIT_DEPTH] == 8)  # Pillow shows 16-bit colors as RGB
    )


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
