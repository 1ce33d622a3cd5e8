"""Files that are either whole or not there: written under a temporary name, synced, and renamed. And their sha256."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends well, and leaves no trace when it does not.

    The temporary name, .NAME.*.tmp, belongs to this call alone, so another process may write the same file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remedy(error: OSError) -> str:
    """What to do where a file could not be written. A network that failed does not ask for free space."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space"
    return "fix the permissions" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "fix that"


def sha256_of(file: BinaryIO) -> str:
    """Hexadecimal sha256 of all that is left to read, in blocks."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
