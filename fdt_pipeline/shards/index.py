"""DALI's webdataset index, version v1.2: where each member of each sample lies in its tar.

First line "v1.2 NUM_SAMPLES", then a line a sample: "EXTENSION OFFSET SIZE NAME" for each member. Byte-equal to the
output of DALI's own wds2idx, but made while the tar is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


def parse_index(text: str, num_bytes: float = math.inf) -> list[list[Member]]:
    """ValueError if it is no such index, or has a member outside of its tar of `num_bytes` bytes."""
    head, *lines = text.split("\n")
    if head != f"{VERSION} {len(lines) - 1}" or lines[-1] != "":
        raise ValueError(
            f"expected {VERSION!r} and the number of lines that follow, got {head[:40]!r}, {len(lines) - 1}"
        )
    samples = [_parse_line(line.split(" ")) for line in lines[:-1]]
    for members in samples:
        for _, offset, size, name in members:
            if min(offset, size) < 0 or offset + size > num_bytes:
                raise ValueError(
                    f"expected {name} within the tar's {num_bytes} bytes, got offset {offset}, size {size}"
                )
    return samples


def _parse_line(words: list[str]) -> list[Member]:
    if len(words) % 4:
        raise ValueError(f"expected EXTENSION OFFSET SIZE NAME for each member, got {' '.join(words)[:80]!r}")
    fields = iter(words)
    return [
        Member(extension, int(offset), int(size), name)
        for extension, offset, size, name in zip(*[fields] * 4, strict=True)
    ]
