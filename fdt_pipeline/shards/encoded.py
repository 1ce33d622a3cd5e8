"""One sample of a source as the files that a shard holds of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..sources.image_pixels import decode_image, plain_census
from ..sources.resize import resized
from ..sources.source import I64, U8, Source
from .codec import decode, stored
from .options import ShardingOptions


class EncodedSample(NamedTuple):
    """shape (h, w, c) and values of what a reader will see: u8[h w c], or i64[c 256], how many pixels have which value.
    members: extension -> file content, in the order of writing."""

    shape: tuple[int, ...]
    values: U8 | I64
    label: int
    source_key: str
    members: dict[str, bytes]


def encode_sample(source: Source, index: int, options: ShardingOptions) -> EncodedSample:
    """Every image is decoded, also where its file is kept as it is. ValueError with the reason if it cannot be."""
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
    if options.size is not None and pixels.shape[:2] != (options.size, options.size):
        pixels, plain = resized(pixels, options.size), None
    extension, data = stored(pixels, options.encoding, file, plain)
    if options.encoding == "jpg":  # it has lost something, and a reader sees what is left
        pixels = decode(data, extension, pixels.shape[2])
    return pixels.shape, pixels, extension, data


def check_image(image: U8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"expected an image u8[h w 1] or u8[h w 3], got {image.dtype} {list(image.shape)}")


def check_label(label: int, num_classes: int) -> None:
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} is out of range: expected 0..{num_classes - 1}")
