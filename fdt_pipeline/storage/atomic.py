"""Files that are either whole or not there: written under a temporary name, synced, and renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends well, and leaves no trace when it does not.

    The temporary name, .NAME.*.tmp, is this process's own: another that writes the same file does not meet it.
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
    """Make renames and removals in it last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remedy(error: OSError) -> str:
    """What mends that a file could not be written. A network that failed does not ask for free space."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space"
    return "mend the permissions" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "mend that"
