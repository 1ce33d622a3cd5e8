"""The index of a shard of ours as arrays, and labels parsed all at once: 1 us a sample, one by one they take 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..sources.source import I64, U8
from .index import VERSION, parse_index

_DIGITS = 9  # of a label; more would not fit into 32 bits


@dataclass(frozen=True)
class IndexColumns:
    """Of n samples, each an image and then a label: bytes [offset, offset + size) of the tar, i64[n] each; the
    image's extension and its member's name."""

    image_offsets: I64
    image_sizes: I64
    label_offsets: I64
    label_sizes: I64
    extensions: list[str]
    names: list[str]

    def part(self, begin: int, end: int) -> IndexColumns:
        span = slice(begin, end)
        return IndexColumns(
            self.image_offsets[span],
            self.image_sizes[span],
            self.label_offsets[span],
            self.label_sizes[span],
            self.extensions[span],
            self.names[span],
        )


def index_columns(text: str, extensions: Sequence[str], num_bytes: int) -> IndexColumns:
    """ValueError if it is no index, or of other samples than an image of one of the extensions and a .cls, each behind
    the one before, in a tar of `num_bytes` bytes: so whoever reads from a first to a last sample has all between."""
    head, _, rest = text.partition("\n")
    words = rest.split()
    if head != f"{VERSION} {rest.count(chr(10))}" or len(words) != 8 * rest.count("\n"):
        parse_index(text)  # says what is wrong with it
        raise ValueError("its samples do not have two members each, an image and a .cls")
    if not set(words[0::8]) <= set(extensions) or set(words[4::8]) - {"cls"}:
        found = ", ".join(sorted({*words[0::8], *words[4::8]})[:5])
        raise ValueError(f"expected the members .{' or .'.join(extensions)} and .cls, got {found}")
    try:
        image_offsets, image_sizes, label_offsets, label_sizes = (np.array(words[i::8], np.int64) for i in (1, 2, 5, 6))
    except OverflowError:  # beyond 64 bits
        parse_index(text, num_bytes)
        raise
    ends = (image_offsets + image_sizes, label_offsets + label_sizes)
    bounds = np.stack([image_offsets, ends[0], label_offsets, ends[1]], axis=1).ravel()
    ascending = np.append(0, bounds) <= np.append(bounds, num_bytes)
    if not ascending.all():
        parse_index(text, num_bytes)  # says which member is outside of the tar
        name = words[3::8][min(int(ascending.argmin()), len(bounds) - 1) // 4]
        raise ValueError(f"expected each member behind the one before, got others at {name}")
    return IndexColumns(image_offsets, image_sizes, label_offsets, label_sizes, words[0::8], words[3::8])


def parsed_labels(data: U8, offsets: I64, sizes: I64) -> I64:
    """Decimal numbers in ASCII at these places of the data -> i64[n]; -1 where there is none of up to 9 digits."""
    labels = np.zeros(len(offsets), np.int64)
    is_good = (sizes > 0) & (sizes <= _DIGITS)
    for digit in range(min(int(sizes.max(initial=0)), _DIGITS)):
        value = data[np.minimum(offsets + digit, len(data) - 1)].astype(np.int64) - ord("0")
        is_there = digit < sizes
        is_good &= ~is_there | ((value >= 0) & (value <= 9))
        labels = np.where(is_there, 10 * labels + value, labels)
    return np.where(is_good, labels, -1)
