"""sha256 of files, in blocks."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

_BLOCK = 1 << 20


def sha256_of(file: BinaryIO) -> str:
    """Hexadecimal, of all that is left to read."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
