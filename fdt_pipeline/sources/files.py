"""The files below a folder or URL, by names relative to it with "/" between the parts; hidden ones are left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ..storage import is_url
from ..storage.remote import RemoteFolder

MAX_FILE_BYTES = 2 << 30
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
# What stores and web servers say of a file that is different when it has changed.
_CHANGING = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created"),
)


class LocalFiles:
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def __getstate__(self) -> dict[str, Path]:
        """An absolute path, as another process may have another working directory."""
        return {"root": self.root.absolute()}

    def names(self) -> list[str]:
        """Names of all files and, with "/" at the end, of all folders; sorted part by part; [] if it is no folder.

        Links to folders are followed; ValueError if one loops. Without recursion: Python's ends at 1,000 folders in one
        another, a path's length at 2,000.
        """
        found: list[str] = []
        waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())] if self.root.is_dir() else []
        while waiting:
            below, above = waiting.pop()
            folder = os.path.join(self.root, below)
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise ValueError(f"{folder.rstrip('/')}: the link leads back to a folder above it; remove it")
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        found.append(f"{below}{entry.name}/")
                        waiting.append((found[-1], (*above, here)))
                    else:
                        found.append(below + entry.name)
        return _sorted(found)

    def read(self, name: str) -> bytes:
        """ValueError if it is not a file of at most 2 GiB, or none at all; OSError if it cannot be read."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        path = os.path.join(self.root, name)
        _check_status(path)
        return open(path, "rb")

    def state(self, name: str) -> str:
        """A str that is different when the file has changed."""
        try:
            status = os.stat(os.path.join(self.root, name))
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"


class RemoteFiles:
    """The same at a URL, where folders are seen by the files in them alone."""

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)
        self._too_large: dict[str, int] = {}  # goes along with a part of a source, which lists nothing

    @property
    def url(self) -> str:
        return self._folder.url

    def names(self) -> list[str]:
        """Names of all files. A key that ends in "/" is none: consoles of object stores make them to show a folder."""
        below = self._folder.files_below().items()
        sizes = {name: int(info.get("size") or 0) for name, info in below if name and not name.endswith("/")}
        self._too_large = {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}
        return _sorted(name for name in sizes if not any(part.startswith(".") for part in name.split("/")))

    def read(self, name: str) -> bytes:
        _check_size(self._too_large.get(name, 0))
        return self._folder.read(name)

    def open(self, name: str) -> BinaryIO:
        return self._folder.open(name)

    def state(self, name: str) -> str:
        """What the store says of it: a hash, or size and time."""
        info = self._folder.info(name)
        if info is None:
            return "missing"
        known = (info.get(field) for field in _CHANGING)
        return f"{info.get('size')}:{':'.join(str(value) for value in known if value is not None)}"


Files = LocalFiles | RemoteFiles


def files_at(path: str) -> Files:
    """Those of a folder of this machine, or at an fsspec URL."""
    return RemoteFiles(path) if is_url(path) else LocalFiles(Path(path))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name.replace("/", "\0"))  # which no name holds and is less than all


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; the error is raised when the file is asked for
        return False


def _check_status(path: str) -> None:
    """ValueError if a path is no regular file, before it is opened: opening a named pipe would wait forever."""
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise ValueError(f"a link to {os.readlink(path)}, which leads nowhere ({error.strerror})") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}, not a file")
    _check_size(status.st_size)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise ValueError(f"a file of {num_bytes} bytes, expected an image of at most {MAX_FILE_BYTES}")
