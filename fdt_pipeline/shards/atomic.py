"""Files that are either whole or not there: written under a temporary name, synced, and renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends well, and leaves no trace when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
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


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Give an OSError of writing (disk full, no permission, ...) the folder and what to do; errno stays."""
    try:
        yield
    except OSError as error:
        advice = "nothing half-written was left; free space, mend the permissions or choose another folder"
        raise OSError(
            error.errno, f"could not write shards ({error.strerror or error}): {advice}", str(folder)
        ) from error


class HashedFile:
    """Passes bytes on to a file and hashes them on the way: what the manifest says is what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.num_bytes

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
