"""A CRC-32 for each sample of a shard, so that damage can be told to lie in this sample and no other.

In the manifest they are one string a shard: base64 of little-endian u32, in the order of the tar; 5 characters each.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence

import numpy as np


def sample_checksum(members: Iterable[bytes]) -> int:
    """Of the contents of a sample's members, one after the other."""
    checksum = 0
    for data in members:
        checksum = zlib.crc32(data, checksum)
    return checksum


def pack_checksums(checksums: Sequence[int]) -> str:
    return base64.b64encode(np.array(checksums, "<u4").tobytes()).decode("ascii")


def unpack_checksums(text: str) -> list[int]:
    """ValueError if it is no such string."""
    try:
        data = base64.b64decode(text, validate=True)
        return np.frombuffer(data, "<u4").tolist()
    except (binascii.Error, ValueError):
        raise ValueError(f"crc32 must be base64 of 32-bit numbers, got {text[:40]!r}") from None
