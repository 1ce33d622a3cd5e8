"""What can be done with a folder of files, for one of the local file system; remote.py has the same for URLs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .atomic import atomic_file, sync_folder


def checked_name(name: str) -> str:
    """The name itself; ValueError if it is absolute, empty or has a part that is "..", "." or empty."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"expected the name of a file below the folder, got {name!r}")
    return name


@dataclass(frozen=True)
class LocalFolder:
    """A name is that of a file in the folder, or below it ("sub/x"), and may not lead out of it.

    Picklable, so that another process or machine can open the same folder. Failures are OSErrors that name the place.
    local: the path; None for a `RemoteFolder`.
    """

    local: Path

    @property
    def url(self) -> str:
        """The path or URL, for messages."""
        return str(self.local)

    def __getstate__(self) -> dict[str, Path]:
        """An absolute path, as another process may have another working directory."""
        return {"local": self.local.absolute()}

    def path(self, name: str) -> str:
        """The path or URL of a file, for messages."""
        return str(self._at(name))

    def names(self) -> list[str]:
        """The files directly in the folder, sorted; [] if it does not exist."""
        return sorted(entry.name for entry in self._entries() if entry.is_file())

    def subfolders(self) -> list[str]:
        """The folders directly in the folder, sorted; [] if it does not exist."""
        return sorted(entry.name for entry in self._entries() if entry.is_dir())

    def exists(self) -> bool:
        return self.local.exists()

    def is_file(self) -> bool:
        """Whether a file lies at this place, and not a folder."""
        return self.local.is_file()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        path = self._at(name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """The whole content; FileNotFoundError if the file does not exist."""
        try:
            return self._at(name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def open(self, name: str) -> BinaryIO:
        """A file to read from, and seek in."""
        return self._at(name).open("rb")

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears whole when the block ends well, and not at all when it does not."""
        return atomic_file(self._at(name))

    def move(self, old: str, new: str) -> None:
        """Rename a file; it replaces what has the new name."""
        self._at(old).replace(self._at(new))

    def remove(self, name: str) -> None:
        """Remove a file; no error if it does not exist."""
        self._at(name).unlink(missing_ok=True)

    def folder(self, name: str) -> LocalFolder:
        return LocalFolder(self._at(name))

    def make(self) -> None:
        """Make the folder and those above it; no error if it exists."""
        self.local.mkdir(parents=True, exist_ok=True)

    def remove_tree(self) -> None:
        """Remove the folder and all below it; no error if it does not exist."""
        if self.local.is_dir():
            shutil.rmtree(self.local)

    def sync(self) -> None:
        """Make moves and removals last through a power cut."""
        sync_folder(self.local)

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            return list(os.scandir(self.local))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _at(self, name: str) -> Path:
        return self.local / checked_name(name)
