"""One image to bytes and back: `raw` is npy 1.0 (uint8, HWC, C order), `png` a lossless PNG of mode L or RGB."""

from __future__ import annotations

import io
import re
from functools import lru_cache

import numpy as np
from PIL import Image

from ..sources.source import U8

EXTENSIONS = {"raw": "npy", "png": "png"}
_NPY_PREFIX = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} *\n")


def check_encoding(encoding: str) -> None:
    if encoding not in EXTENSIONS:
        raise ValueError(f"encoding must be one of {', '.join(EXTENSIONS)}, got {encoding!r}")


def encode(image: U8, encoding: str) -> bytes:
    """u8[h w c] -> file content. PNG's bytes depend on the zlib that Pillow was built with, its pixels do not."""
    if encoding == "raw":
        return _npy_header(image.shape) + image.tobytes()
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "png")
    return file.getvalue()


def decode(data: bytes | memoryview, encoding: str) -> U8:
    """File content -> u8[h w c]; a read-only view of the data if raw. ValueError if it is not such an image."""
    return _decode_npy(data) if encoding == "raw" else _decode_png(data)


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@lru_cache(maxsize=64)
def _npy_shape(header: bytes) -> tuple[int, ...]:
    """Only headers that `encode` writes: NumPy's parser warns, and raises many kinds of errors, for broken ones."""
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"expected an npy header of uint8 HWC in C order, got {header[:80]!r}")
    return tuple(map(int, match.groups()))


def _decode_npy(data: bytes | memoryview) -> U8:
    if bytes(data[:8]) != _NPY_PREFIX:
        raise ValueError("not an npy file of version 1.0")
    offset = 10 + int.from_bytes(data[8:10], "little")
    shape = _npy_shape(bytes(data[10:offset]))
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def _decode_png(data: bytes | memoryview) -> U8:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow raises whatever broken bytes lead it to
        raise ValueError(f"broken png ({error})") from None
    if mode not in ("L", "RGB"):
        raise ValueError(f"expected a png of mode L or RGB, got {mode}")
    return pixels if pixels.ndim == 3 else pixels[..., None]
