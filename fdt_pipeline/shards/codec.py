"""One image, or one sample of a source, to the content of files; and back.

raw: npy 1.0 (uint8, HWC, C order). png: mode L or RGB. webp: lossless; it has no gray, so gray is stored as RGB.
jpg: quality 95, without chroma subsampling; the lossy one. keep: the source's own file where that is a
plain jpg, png or webp (sources/image_pixels.py), and png for any other file.
"""

from __future__ import annotations

import io
import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from ..sources.image_pixels import decode_image, plain_census, quiet, resized
from ..sources.source import I64, U8, Source
from .index import IndexColumns
from .tar import RECORD

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
_FORMATS = tuple(form for form, _ in _OPTIONS.values())
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame headers
_BEGINNING = 1 << 14  # bytes of a file, which hold the size of most images
_NPY_PREFIX = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} *\n")


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


def decode(data: bytes | memoryview, extension: str, channels: int | None = None) -> U8:
    """File content -> u8[h w c]; a read-only view of the data if it is an npy. ValueError if it is not such an image.

    channels: 1 or 3, where the file must not decide.
    """
    return _decode_npy(data) if extension == "npy" else _decode_file(data, extension, channels)


@lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the pixels of an npy file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@lru_cache(maxsize=64)
def _npy_shape(header: bytes) -> tuple[int, ...]:
    """The shape in a header that `encode` wrote. NumPy's parser warns of broken ones, and raises many errors."""
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


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """What the first frame header (SOF) of a JPEG says, where all segments before it are whole."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _FRAMES:
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return (height, width) if height and width else None
        if not 0xC4 <= kind <= 0xFE or 0xD0 <= kind <= 0xDA:  # no segment of a header
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def image_size(file: U8) -> tuple[int, int]:
    """u8[bytes] of a jpg, png or webp -> (height, width), as its pixels are stored. ValueError if its header cannot be
    read.

    Pillow takes 20 to 80 us, and 20 to copy 175 kB, so it is asked for what is no common JPEG, and given the beginning
    first. A JPEG of 500 x 400 takes 1 ms to decode, and here 4 us.
    """
    found = _jpeg_size(file.data)
    if found is not None:
        return found
    # `quiet` is not for every file, as other threads see it: where warnings are errors, those of broken EXIF are none.
    for part, context in ((file[:_BEGINNING], nullcontext), (file, nullcontext), (file, quiet)):
        try:
            with context():
                return _header_size(part)
        except Exception as error:  # Pillow raises whatever broken bytes lead it to
            reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"its size cannot be read ({reason})")


def _header_size(file: U8) -> tuple[int, int]:
    with Image.open(io.BytesIO(file.data), formats=_FORMATS) as image:
        return image.height, image.width


def raw_images(data: U8, samples: IndexColumns, shape: tuple[int, int, int]) -> tuple[U8, list[int]]:
    """(u8[n h w c], numbers of the samples that are no such image). data: the bytes of the tar from the first sample's
    image on; the images are a view of them, as samples of one shape lie at equal distances. ValueError where by the
    index they do not."""
    starts = samples.image_offsets - samples.image_offsets[0]
    header = np.frombuffer(npy_header(shape), np.uint8)
    expected = len(header) + math.prod(shape)
    step = int(starts[1] - starts[0]) if len(starts) > 1 else expected
    for number in np.flatnonzero((samples.image_sizes != expected) | (starts != np.arange(len(starts)) * step)):
        raise ValueError(f"sample {samples.key(number)}: {not_raw(shape)}")
    rows = as_strided(data, (len(starts), expected), (step, 1), writeable=False)
    wrong = np.flatnonzero((rows[:, : len(header)] != header).any(axis=1))
    h, w, c = shape
    images = as_strided(data[len(header) :], (len(starts), h, w, c), (step, w * c, c, 1), writeable=False)
    return images, wrong.tolist()


def not_raw(shape: tuple[int, ...]) -> str:
    """What is wrong with a sample that is not such an image."""
    return f"not an npy file of one uint8 image of {' x '.join(map(str, shape))}"


@dataclass(frozen=True)
class ShardingOptions:
    """encoding: raw, png, webp, jpg or keep. size: side that images are resized and cropped to; None leaves their size.
    samples_per_shard, max_shard_bytes: whichever is reached first ends a tar; the bytes are those of the tar."""

    encoding: str = "raw"
    size: int | None = None
    samples_per_shard: int = 1000
    max_shard_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.encoding not in EXTENSIONS:
            raise ValueError(f"encoding must be one of {', '.join(EXTENSIONS)}, got {self.encoding!r}")
        for name in ("size", "samples_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size is not None and self.size > 16_383:
            raise ValueError(f"size must be at most 16383, the longest side of a WebP, got {self.size}")
        if self.max_shard_bytes is not None and self.max_shard_bytes < RECORD:
            raise ValueError(
                f"max_shard_bytes must be at least {RECORD}, the least a tar has, got {self.max_shard_bytes}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")


class EncodedSample(NamedTuple):
    """shape (h, w, c) and values of what a reader will see: u8[h w c], or i64[c 256], how many pixels have which value.
    members: extension -> file content, in the order of writing."""

    shape: tuple[int, ...]
    values: U8 | I64
    label: int
    source_key: str
    members: dict[str, bytes]


def encode_sample(source: Source, index: int, options: ShardingOptions) -> EncodedSample:
    """One sample as files. Every image is decoded, also where its file is kept. ValueError if it cannot."""
    if hasattr(source, "read_file"):
        files: Any = source
        label = int(source.labels[index])
        key = files.key(index) if hasattr(source, "key") else source[index].key
        shape, values, extension, data = _of_file(files.read_file(index), files.channels, options)
    else:
        pixels, label, key = source[index]
        check_image(pixels)
        shape, values, extension, data = _encoded(pixels, None, None, options)
    check_label(label, len(source.classes))
    return EncodedSample(shape, values, label, key, {extension: data, "cls": str(label).encode("ascii")})


_Encoded = tuple[tuple[int, ...], "U8 | I64", str, bytes]


def _of_file(file: bytes, channels: int, options: ShardingOptions) -> _Encoded:
    if options.encoding == "keep" and options.size is None:
        census = plain_census(file, channels)
        if census is not None:
            return census.shape, census.counts, census.plain, file
    return _encoded(*decode_image(file, channels), file, options)


def _encoded(pixels: U8, plain: str | None, file: bytes | None, options: ShardingOptions) -> _Encoded:
    """file: the source's own; plain: its extension, if the file may be kept."""
    if options.size is not None and pixels.shape[:2] != (options.size, options.size):
        pixels, plain = resized(pixels, options.size), None
    if options.encoding == "keep" and file is not None and plain is not None:
        return pixels.shape, pixels, plain, file
    encoding = "png" if options.encoding == "keep" else options.encoding
    extension, data = EXTENSIONS[encoding][0], encode(pixels, encoding)
    if options.encoding == "jpg":  # it has lost something, and a reader sees what is left
        pixels = decode(data, extension, pixels.shape[2])
    return pixels.shape, pixels, extension, data


def check_image(image: U8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"expected an image u8[h w 1] or u8[h w 3], got {image.dtype} {list(image.shape)}")


def check_label(label: int, num_classes: int) -> None:
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} is out of range: expected 0..{num_classes - 1}")
