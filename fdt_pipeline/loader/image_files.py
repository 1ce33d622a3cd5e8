"""What an image file is before DALI decodes it: its size, and which way up it is.

The rule is that of sources/image_pixels.py: EXIF orientation is applied. DALI 2 does so; DALI 1.34 shows such images as
they are stored. No DALI decodes every extended WebP (one with EXIF, or of transparency): 1.34 none, 2.4 not those whose
pixels have an odd number of bytes. What DALI cannot do, Pillow does.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from fdt_pipeline.dali import version
from fdt_pipeline.sources.image_pixels import decode_image, quiet
from fdt_pipeline.sources.source import U8

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_BEGINNING = 1 << 14  # bytes


def image_size(file: U8) -> tuple[int, int]:
    """u8[bytes] -> (height, width) of the upright image; ValueError if its header cannot be read.

    Pillow takes 25 to 40 us, a thirtieth of the time that a JPEG of 500 x 400 takes to decode.
    """
    try:
        width, height, orientation = _header(file)
    except Exception as error:  # Pillow raises whatever broken bytes lead it to
        raise ValueError(f"its size cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    return (width, height) if orientation in _SIDEWAYS else (height, width)


def decodable(file: U8, channels: int) -> U8:
    """The file; or, if DALI would not show it upright, its upright pixels in a file of NetPBM's.

    A file that Pillow cannot decode stays as it is, for DALI to report.
    """
    if not _is_for_pillow(file):
        return file
    try:
        pixels = decode_image(file.tobytes(), channels).pixels
    except ValueError:
        return file
    height, width, _ = pixels.shape
    header = f"{'P5' if channels == 1 else 'P6'}\n{width} {height}\n255\n".encode()
    return np.concatenate([np.frombuffer(header, np.uint8), pixels.ravel()])


def _is_for_pillow(file: U8) -> bool:
    if file[8:16].tobytes() == b"WEBPVP8X":
        return True
    if _dali_turns():
        return False
    if file[:4].tobytes() == b"\x89PNG":
        return b"eXIf" in file.tobytes()  # 1.34 does not decode it where that is broken
    if len(file) <= _BEGINNING and b"Exif\0\0" not in file.tobytes():  # 1 us for 10 kB, where Pillow takes 25
        return False
    try:
        return _header(file)[2] != 1
    except Exception:  # as in `image_size`
        return False


@lru_cache
def _dali_turns() -> bool:
    """Whether DALI's decoders apply EXIF orientation."""
    return int(version().split(".")[0]) >= 2


def _header(file: U8) -> tuple[int, int, int]:
    """(width, height, orientation) as they are stored. Of most files the beginning is enough: to copy all of 175 kB
    takes as long as Pillow does."""
    try:
        return _read_header(file[:_BEGINNING])
    except Exception:
        with quiet():  # where warnings are errors, Pillow's of broken EXIF must not be one; not for each file: 10 us
            return _read_header(file)


def _read_header(file: U8) -> tuple[int, int, int]:
    with Image.open(io.BytesIO(file.data), formats=_FORMATS) as image:
        return *image.size, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """1 is upright, as are images whose EXIF cannot be read. Not of XMP, which DALI does not read."""
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # the same parser as for TIFF, on bytes that may be anything
        return 1
