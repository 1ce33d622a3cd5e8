"""A folder of the local file system."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from .atomic import atomic_file, sync_folder
from .names import checked_name


class LocalFolder:
    """See `Folder`."""

    def __init__(self, path: Path) -> None:
        self.local = path

    @property
    def url(self) -> str:
        return str(self.local)

    def __fspath__(self) -> str:
        return str(self.local)

    def __repr__(self) -> str:
        return f"LocalFolder({str(self.local)!r})"

    def __getstate__(self) -> dict[str, Path]:
        """Another process, as of a cluster, may be in another folder."""
        return {"local": self.local.absolute()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalFolder) and other.local == self.local

    def __hash__(self) -> int:
        return hash(self.local)

    def path(self, name: str) -> str:
        return str(self._at(name))

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.local) if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def subfolders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.local) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self) -> bool:
        return self.local.exists()

    def is_file(self) -> bool:
        return self.local.is_file()

    def size(self, name: str) -> int | None:
        path = self._at(name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        try:
            return self._at(name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def open(self, name: str) -> BinaryIO:
        return self._at(name).open("rb")

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        return atomic_file(self._at(name))

    def move(self, old: str, new: str) -> None:
        self._at(old).replace(self._at(new))

    def remove(self, name: str) -> None:
        self._at(name).unlink(missing_ok=True)

    def folder(self, name: str) -> LocalFolder:
        return LocalFolder(self._at(name))

    def make(self) -> None:
        self.local.mkdir(parents=True, exist_ok=True)

    def remove_tree(self) -> None:
        if self.local.is_dir():
            shutil.rmtree(self.local)

    def sync(self) -> None:
        sync_folder(self.local)

    def _at(self, name: str) -> Path:
        return self.local / checked_name(name)
