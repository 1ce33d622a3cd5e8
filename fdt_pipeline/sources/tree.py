"""The files below a folder, by their names relative to it with "/" between the parts. Hidden ones are left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

MAX_FILE_BYTES = 2 << 30
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Tree(Protocol):
    """Picklable, without what it may have listed."""

    @property
    def url(self) -> str: ...

    def folders(self, below: str) -> list[str]:
        """Names of the folders directly in `below` ("" is the tree itself), sorted; [] if it is none."""

    def files(self, below: str) -> list[str]:
        """Names of the files directly in it, sorted."""

    def walk(self, below: str) -> list[str]:
        """Of all files below it, relative to it; sorted part by part."""

    def read(self, name: str) -> bytes:
        """ValueError if it is not a file of at most 2 GiB, or none at all; OSError if it cannot be read."""

    def open(self, name: str) -> BinaryIO: ...

    def state(self, name: str) -> str:
        """What is different when the file has changed."""


class LocalTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def __getstate__(self) -> dict[str, Path]:
        """Another process, as of a cluster, may be in another folder."""
        return {"root": self.root.absolute()}

    def folders(self, below: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(below) if _is_folder(entry))

    def files(self, below: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(below) if not _is_folder(entry))

    def walk(self, below: str) -> list[str]:
        """Through links to folders too; ValueError if one loops."""
        return sorted(_walk(os.path.join(self.root, below)), key=lambda name: name.split("/"))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        path = os.path.join(self.root, name)
        _check_status(path)
        return open(path, "rb")

    def state(self, name: str) -> str:
        try:
            status = os.stat(os.path.join(self.root, name))
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        path = os.path.join(self.root, below)
        if not os.path.isdir(path):
            return []
        return [entry for entry in os.scandir(path) if not entry.name.startswith(".")]


def check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise ValueError(f"a file of {num_bytes} bytes, expected an image of at most {MAX_FILE_BYTES}")


def _check_status(path: str) -> None:
    """Before it is opened: opening a named pipe would wait for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise ValueError(f"a link to {os.readlink(path)}, which is not there") from None
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a link that leads to itself") from None
        if error.errno == errno.ENOTDIR:
            raise ValueError("a link that leads through a file as if it were a folder") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}, not a file")
    check_size(status.st_size)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; told when the file is asked for
        return False


def _walk(root: str) -> Iterator[str]:
    """Without recursion: Python's ends at 1,000 folders in one another, a path's length at 2,000."""
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(root, "", ())]
    while waiting:
        folder, prefix, above = waiting.pop()
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise ValueError(f"{folder}: the link leads back to a folder above it; remove it")
        for entry in _visible(folder):
            if _is_folder(entry):
                waiting.append((entry.path, f"{prefix}{entry.name}/", (*above, here)))
            else:
                yield prefix + entry.name


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
