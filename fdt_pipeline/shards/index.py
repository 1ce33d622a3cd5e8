"""DALI's webdataset index, version v1.2: where each member of each sample lies in its tar.

First line "v1.2 NUM_SAMPLES", then a line a sample: "EXTENSION OFFSET SIZE NAME" for each member. Byte-equal to the
output of DALI's own wds2idx, but made while the tar is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..sources.source import I64, U8

VERSION = "v1.2"


class Member(NamedTuple):
    """Bytes [offset, offset + size) of the tar."""

    extension: str
    offset: int
    size: int
    name: str


def index_text(samples: list[list[Member]]) -> str:
    lines = [" ".join(" ".join(map(str, member)) for member in members) for members in samples]
    return "\n".join([f"{VERSION} {len(samples)}", *lines, ""])


_OCTAL = re.compile(rb"(?<!\\)\\(040|[23][0-7][0-7])")  # a blank, and bytes from 128 on


def readable(text: str) -> str:
    """A text with the blanks and the UTF-8 that `indexing.escaped` wrote in octal; other bytes as \\xhh."""
    data = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text.encode("utf-8"))
    return data.decode("utf-8", "backslashreplace")


def key_of(name: str) -> str:
    """The name of a member up to the first dot of its last part, as webdataset has it."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


_DIGITS = 9  # of a label; more would not fit into 32 bits


@dataclass(frozen=True)
class IndexColumns:
    """The index of n samples, each an image and a label, as arrays: bytes [offset, offset + size) of the tar, i64[n]
    each; the image's extension and its member's name. A sample lies behind the one before, whole."""

    image_offsets: I64
    image_sizes: I64
    label_offsets: I64
    label_sizes: I64
    extensions: list[str]
    names: list[str]

    @property
    def begins(self) -> I64:
        """i64[n]: where the first of a sample's two members begins."""
        return np.minimum(self.image_offsets, self.label_offsets)

    @property
    def ends(self) -> I64:
        """i64[n]: where the last of a sample's two members ends."""
        return np.maximum(self.image_offsets + self.image_sizes, self.label_offsets + self.label_sizes)

    def key(self, number: int) -> str:
        return readable(key_of(self.names[number]))

    def part(self, begin: int, end: int) -> IndexColumns:
        return IndexColumns(*(column[begin:end] for column in vars(self).values()))


def index_columns(text: str, extensions: Sequence[str], num_bytes: int) -> IndexColumns:
    """ValueError unless each sample is an image of one of the extensions and a .cls, each member behind the one before,
    in a tar of `num_bytes` bytes: so the bytes from a first to a last sample hold all samples between."""
    head, _, rest = text.partition("\n")
    words, num_lines = rest.split(), rest.count("\n")
    if head != f"{VERSION} {num_lines}":
        raise ValueError(f"expected {VERSION!r} and the number of lines that follow, got {head[:40]!r}, {num_lines}")
    if len(words) != 8 * num_lines:
        raise ValueError("expected EXTENSION OFFSET SIZE NAME twice in each line, of an image and of a .cls")
    if not set(words[0::8]) <= set(extensions) or set(words[4::8]) - {"cls"}:
        found = ", ".join(sorted({*words[0::8], *words[4::8]})[:5])
        raise ValueError(f"expected the members .{' or .'.join(extensions)} and .cls, got {found}")
    try:
        image_offsets, image_sizes, label_offsets, label_sizes = (np.array(words[i::8], np.int64) for i in (1, 2, 5, 6))
    except OverflowError:
        raise ValueError("expected offsets and sizes of up to 64 bits") from None
    ends = (image_offsets + image_sizes, label_offsets + label_sizes)
    bounds = np.stack([image_offsets, ends[0], label_offsets, ends[1]], axis=1).ravel()
    ascending = np.append(0, bounds) <= np.append(bounds, num_bytes)
    if not ascending.all():
        begin = 8 * (min(int(ascending.argmin()), len(bounds) - 1) // 4)
        raise ValueError(
            f"expected each member behind the one before, within the tar's {num_bytes} bytes, got "
            f"{' '.join(words[begin : begin + 8])}"
        )
    return IndexColumns(image_offsets, image_sizes, label_offsets, label_sizes, words[0::8], words[3::8])


def read_labels(data: U8, samples: IndexColumns, num_classes: int) -> tuple[I64, dict[int, str]]:
    """(i64[n], number -> what is wrong with its label). data: the bytes of the tar from the first sample's begin on.

    Decimal numbers in ASCII, parsed all at once: 1 us a sample, one by one they take 8."""
    offsets, sizes = samples.label_offsets - samples.begins[0], samples.label_sizes
    labels = np.zeros(len(offsets), np.int64)
    is_good = (sizes > 0) & (sizes <= _DIGITS)
    for digit in range(min(int(sizes.max(initial=0)), _DIGITS)):
        value = data[np.minimum(offsets + digit, len(data) - 1)].astype(np.int64) - ord("0")
        is_there = digit < sizes
        is_good &= ~is_there | ((value >= 0) & (value <= 9))
        labels = np.where(is_there, 10 * labels + value, labels)
    bad = {}
    for number in np.flatnonzero(~is_good | (labels >= num_classes)).tolist():
        text = data[offsets[number] : offsets[number] + sizes[number]][:40].tobytes()
        bad[number] = f"the .cls member holds {text!r}, expected a class number below {num_classes}"
    return np.where(is_good, labels, -1), bad


def parse_label(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise ValueError(f"the .cls member holds {data[:40]!r}, expected a class number") from None
