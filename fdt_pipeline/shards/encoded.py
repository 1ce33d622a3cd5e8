"""One sample of a source as the files that a shard holds of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..sources.image_pixels import decode_image
from ..sources.resize import resized
from ..sources.source import U8, Source
from .codec import decode, stored
from .options import ShardingOptions


class EncodedSample(NamedTuple):
    """pixels: what a reader will see. members: extension -> file content, in the order of writing."""

    pixels: U8
    label: int
    source_key: str
    members: dict[str, bytes]


def encode_sample(source: Source, index: int, options: ShardingOptions) -> EncodedSample:
    """Every image is decoded, also where its file is kept as it is. ValueError with the reason if it cannot be."""
    files: Any = source
    file: bytes | None = None
    plain: str | None = None
    if hasattr(source, "read_file"):
        file = files.read_file(index)
        pixels, plain = decode_image(file, files.channels)
        label, key = int(source.labels[index]), files.key(index)
    else:
        pixels, label, key = source[index]
        check_image(pixels)
    check_label(label, len(source.classes))
    if options.size is not None and pixels.shape[:2] != (options.size, options.size):
        pixels, plain = resized(pixels, options.size), None
    extension, data = stored(pixels, options.encoding, file, plain)
    if extension == "jpg" and plain is None:  # it has lost something, and a reader sees what is left
        pixels = decode(data, extension, pixels.shape[2])
    return EncodedSample(pixels, label, key, {extension: data, "cls": str(label).encode("ascii")})


def check_image(image: U8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"expected an image u8[h w 1] or u8[h w 3], got {image.dtype} {list(image.shape)}")


def check_label(label: int, num_classes: int) -> None:
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} is out of range: expected 0..{num_classes - 1}")
