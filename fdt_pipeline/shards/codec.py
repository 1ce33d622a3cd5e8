"""One image to the content of a file and back.

raw: npy 1.0 (uint8, HWC, C order). png: mode L or RGB. webp: lossless; it has no gray, so gray is stored as RGB.
jpg: quality 95, without chroma subsampling; the one that loses something. keep: the source's own file where that is a
plain jpg, png or webp (sources/image_pixels.py), and png for any other file.
"""

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ..sources.image_pixels import quiet
from ..sources.source import U8

EXTENSIONS = {
    "raw": ("npy",),
    "png": ("png",),
    "webp": ("webp",),
    "jpg": ("jpg",),
    "keep": ("jpg", "png", "webp"),
}
# Of a photograph of 500 x 400, WebP's method 0 takes 7.5 ms and 349 kB, its default 54 ms and 296 kB, and PNG 43 ms and
# 322 kB. PNG stays at its default level 6: of CIFAR's 32 x 32 images it takes 123 us and 2,266 bytes, level 1 109 us
# and 2,302 bytes; half of the time is Pillow's own.
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True, "method": 0, "exact": True}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
_NPY_PREFIX = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} *\n")


def check_encoding(encoding: str) -> None:
    if encoding not in EXTENSIONS:
        raise ValueError(f"encoding must be one of {', '.join(EXTENSIONS)}, got {encoding!r}")


def encode(image: U8, encoding: str) -> bytes:
    """u8[h w c] -> file content, by any encoding but keep. Bytes depend on the libraries that Pillow was built with."""
    if encoding == "raw":
        return npy_header(image.shape) + image.tobytes()
    form, options = _OPTIONS[encoding]
    file = io.BytesIO()
    try:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, form, **options)
    except (OSError, ValueError) as error:  # a WebP has at most 16,383 pixels a side, a JPEG 65,535
        height, width = image.shape[:2]
        raise ValueError(f"{width} x {height} pixels cannot be stored as {encoding} ({error})") from error
    return file.getvalue()


def stored(image: U8, encoding: str, file: bytes | None = None, plain: str | None = None) -> tuple[str, bytes]:
    """(extension, content) of an image in this encoding. file: the source's own; plain: its extension, if it may be
    kept."""
    if encoding == "keep":
        if file is not None and plain is not None:
            return plain, file
        encoding = "png"
    return EXTENSIONS[encoding][0], encode(image, encoding)


def decode(data: bytes | memoryview, extension: str, channels: int | None = None) -> U8:
    """File content -> u8[h w c]; a read-only view of the data if it is an npy. ValueError if it is not such an image.

    channels: 1 or 3, where the file must not decide.
    """
    return _decode_npy(data) if extension == "npy" else _decode_file(data, extension, channels)


@lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """What is before the pixels of an npy file."""
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


def _decode_file(data: bytes | memoryview, extension: str, channels: int | None) -> U8:
    form, _ = _OPTIONS[extension]
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=(form,)) as image:
            mode = image.mode
            pixels = np.asarray(image if channels is None else image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow raises whatever broken bytes lead it to
        raise ValueError(f"broken {extension} ({error})") from None
    if mode not in ("L", "RGB"):
        raise ValueError(f"expected a {extension} of mode L or RGB, got {mode}")
    return pixels if pixels.ndim == 3 else pixels[..., None]
