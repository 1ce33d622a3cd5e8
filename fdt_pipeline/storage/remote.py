"""A folder of an object store or web server, through fsspec: any URL that it knows a package for.

Objects appear whole when they are uploaded, so what is written is put into a local temporary file first.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, cast

from .names import checked_name
from .retrying import Retry

# Those that make folders of themselves, and where asking for one may ask for a bucket.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "memory"})
_BLOCK = 8 << 20
_PACKAGES = "s3fs for s3://, gcsfs for gs://, aiohttp for http://"


class RemoteFolder:
    """See `Folder`. options: for fsspec's filesystem, beside what its own configuration says."""

    local = None

    def __init__(self, url: str, retry: Retry = Retry(), options: dict[str, Any] | None = None) -> None:  # noqa: B008
        self.url, self.retry, self.options = url.rstrip("/"), retry, options or {}
        self.protocol = url.partition("://")[0].lower()

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFolder) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection: another process makes its own."""
        return {name: value for name, value in vars(self).items() if name != "fs"}

    @cached_property
    def fs(self) -> Any:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError(f"{self.url}: needs fsspec: pip install 'fdt-pipeline[remote]'") from error
        try:
            fs = fsspec.filesystem(self.protocol, use_listings_cache=False, **self.options)
            fs.retries = 1  # s3fs would try five times, each of our times
            return fs
        except ImportError as error:
            raise ImportError(f"{self.url}: {error}; pip install 'fdt-pipeline[remote]' brings {_PACKAGES}") from error
        except ValueError as error:
            raise ValueError(f"{self.url}: {error}; expected a path, or a URL that fsspec knows") from error

    @property
    def is_web(self) -> bool:
        """A web server answers for files, and knows no folders."""
        return self.protocol in ("http", "https")

    def path(self, name: str) -> str:
        return f"{self.url}/{checked_name(name)}"

    def names(self) -> list[str]:
        return self._list("file")

    def subfolders(self) -> list[str]:
        return self._list("directory")

    def exists(self) -> bool:
        return self.is_web or self._call(self.url, lambda: self.fs.exists(self.url))

    def is_file(self) -> bool:
        return not self.is_web and self._call(self.url, lambda: self.fs.isfile(self.url))

    def size(self, name: str) -> int | None:
        url = self.path(name)
        try:
            return self._call(url, lambda: self.fs.info(url))["size"]
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        url = self.path(name)
        return self._call(url, lambda: self.fs.cat_file(url))

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Up to end - begin bytes; fewer where the file ends, or the connection broke off. Tried once."""
        url = self.path(name)
        data = self.fs.cat_file(url, start=begin, end=end)
        return data[begin:end] if len(data) > end - begin else data  # some web servers give all that they have

    def open(self, name: str) -> BinaryIO:
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.path(name)}: not there")
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, name, size), _BLOCK))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        url = self.path(name)
        with tempfile.NamedTemporaryFile(prefix="fdt-pipeline-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            size = file.tell()
            self._call(url, lambda: self.fs.put_file(file.name, url))
        if self.size(name) != size:
            raise OSError(f"{url}: uploaded {size} bytes, but {self.size(name)} are there; write it again")

    def move(self, old: str, new: str) -> None:
        """A copy and a removal: stores cannot rename."""
        source, target = self.path(old), self.path(new)
        self._call(target, lambda: self.fs.cp_file(source, target))
        self.remove(old)

    def remove(self, name: str) -> None:
        url = self.path(name)
        try:
            self._call(url, lambda: self.fs.rm_file(url))
        except FileNotFoundError:
            return

    def folder(self, name: str) -> RemoteFolder:
        return RemoteFolder(self.path(name), self.retry, self.options)

    def make(self) -> None:
        if self.protocol not in _WITHOUT_FOLDERS:
            self._call(self.url, lambda: self.fs.makedirs(self.url, exist_ok=True))

    def remove_tree(self) -> None:
        try:
            self._call(self.url, lambda: self.fs.rm(self.url, recursive=True))
        except FileNotFoundError:
            return

    def sync(self) -> None:
        """What was answered is kept."""

    def _list(self, kind: str) -> list[str]:
        if self.is_web:
            return []  # it cannot be asked
        try:
            entries = self._call(self.url, lambda: self.fs.ls(self.url, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        here = self.fs._strip_protocol(self.url).rstrip("/")
        names = (entry["name"].rstrip("/") for entry in entries if entry["type"] == kind)
        return sorted(name.rpartition("/")[2] for name in names if name != here)

    def _call(self, url: str, function: Any) -> Any:
        return self.retry.call(url, function)


class _Ranges(io.RawIOBase):
    """A remote file, read in ranges, each of which is tried again for itself."""

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        url, begin = self._folder.path(self._name), self._at
        data = self._folder.retry.call(url, lambda: self._some(begin, end))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _some(self, begin: int, end: int) -> bytes:
        data = self._folder.read_range(self._name, begin, end)
        if not data:
            raise OSError(f"no bytes from {begin} on, expected them up to {self._size}")
        return data
