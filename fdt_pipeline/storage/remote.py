"""A folder of an object store or web server, through fsspec: any URL that it knows a package for.

Objects appear whole when they are uploaded, so what is written is put into a local temporary file first.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, ClassVar, cast

from .folder import checked_name
from .retrying import Retry, answered, is_transient

_PACKAGES = "fsspec, s3fs for s3://, gcsfs for gs://, aiohttp for http://"
# Seconds until a connection stands, and between two pieces of an answer. s3fs has 5 and 15 of its own; aiohttp has no
# bound on the second, but one of 5 minutes on the whole, which a large file on a slow line does not keep.
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0


def connect(protocol: str, url: str) -> Any:
    """ImportError if a package for the protocol is missing, ValueError if there is none; both name the URL."""
    try:
        import fsspec

        options = _timeouts(fsspec.config.conf.get(protocol, {})) if protocol in ("http", "https") else {}
        fs = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        raise ImportError(f"{url}: {error}; pip install 'fdt-pipeline[remote]' brings {_PACKAGES}") from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}; expected a path, or a URL that fsspec knows") from error
    if protocol in ("s3", "s3a"):
        # Else each of our 6 tries would be 5 of s3fs's, and each of those 5 of botocore's.
        fs.retries = 1
        fs.config_kwargs.setdefault("retries", {"max_attempts": 0})
    return fs


def _timeouts(configured: dict[str, Any]) -> dict[str, Any]:
    """Options with our time-outs, unless fsspec's configuration sets them."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout, **configured.get("client_kwargs", {})}}


# Those that make folders of themselves, and where asking for one may ask for a bucket.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "memory"})
BLOCK_BYTES = 8 << 20


@dataclass(unsafe_hash=True)
class RemoteFolder:
    """A folder at a URL, with the methods of `LocalFolder`. ValueError if the URL names no place, ImportError at the
    first use if a package for it is missing."""

    url: str
    retry: Retry = field(default_factory=Retry, compare=False, repr=False)
    local: ClassVar[None] = None

    def __post_init__(self) -> None:
        protocol, _, place = self.url.partition("://")
        self.protocol = protocol.lower()
        if not place.strip("/"):
            raise ValueError(f"expected the URL of a folder, such as s3://bucket/folder, got {self.url!r}")
        if self.is_web and ("?" in self.url or "#" in self.url):
            raise ValueError(f"expected the URL of a folder, to which names of files can be added, got {self.url!r}")
        self.url = self.url.rstrip("/")
        self._connection: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection, as another process makes its own."""
        return {**vars(self), "_connection": None}

    @property
    def fs(self) -> Any:
        """The connection: made at the first use, and again in a process that was forked since."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = os.getpid(), connect(self.protocol, self.url)
        return self._connection[1]

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
        return self.is_web or self.info() is not None

    def is_file(self) -> bool:
        return not self.is_web and (self.info() or {}).get("type") == "file"

    def info(self, name: str | None = None) -> dict[str, Any] | None:
        """What the store says of a file, or of this place itself; None if it is not there."""
        url = self.url if name is None else self.path(name)

        def ask() -> dict[str, Any]:
            try:
                return self.fs.info(url)
            except FileNotFoundError as error:  # so fsspec says also where a web server fails, or refuses
                cause = error.__cause__
                if cause is not None and (is_transient(cause) or answered(cause)[0] in (401, 403)):
                    raise cause from None
                raise

        try:
            return self.retry.call(url, ask)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        info = self.info(name)
        if info is None or info.get("type") == "directory":
            return None
        return len(self.read(name)) if info["size"] is None else info["size"]  # some web servers do not say

    def read(self, name: str) -> bytes:
        url = self.path(name)
        return self.retry.call(url, lambda: self.fs.cat_file(url))

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """end - begin bytes; fewer where the file ends, or the connection broke off, and all that follow from a web
        server that knows no ranges. Tried once."""
        try:
            data = self.fs.cat_file(self.path(name), start=begin, end=end)
        except Exception as error:
            if answered(error)[0] == 416:  # the file ends before
                return b""
            raise
        return data[begin:] if len(data) > end - begin else data

    def open(self, name: str) -> BinaryIO:
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.path(name)}: not there")
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, name, size), BLOCK_BYTES))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        url = self.path(name)
        with tempfile.NamedTemporaryFile(prefix="fdt-pipeline-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            self.retry.call(url, lambda: self._put(file.name, url))

    def move(self, old: str, new: str) -> None:
        """A copy and a removal: stores cannot rename."""
        source, target = self.path(old), self.path(new)
        self.retry.call(target, lambda: self.fs.cp_file(source, target))
        self.remove(old)

    def remove(self, name: str) -> None:
        url = self.path(name)
        try:
            self.retry.call(url, lambda: self.fs.rm_file(url))
        except FileNotFoundError:
            return

    def folder(self, name: str) -> RemoteFolder:
        return RemoteFolder(self.path(name), self.retry)

    def make(self) -> None:
        if self.protocol not in _WITHOUT_FOLDERS:
            self.retry.call(self.url, lambda: self.fs.makedirs(self.url, exist_ok=True))

    def remove_tree(self) -> None:
        try:
            self.retry.call(self.url, lambda: self.fs.rm(self.url, recursive=True))
        except FileNotFoundError:
            return

    def sync(self) -> None:
        """A store has kept what it has confirmed."""

    def files_below(self) -> dict[str, dict[str, Any]]:
        """Name -> what the store says, of every file in it and below it. Object stores list them all at once, without a
        request for each folder."""
        if self.protocol in _WITHOUT_FOLDERS and not self.is_web:
            found = list(self.retry.call(self.url, lambda: self.fs.find(self.url, detail=True)).values())
        else:
            found = self._walked()
        root = self.fs._strip_protocol(self.url).rstrip("/") + "/"
        return {info["name"].removeprefix(root): info for info in found}

    def _walked(self) -> list[dict[str, Any]]:
        """All files below it. fsspec's `find` takes a folder whose listing fails for an empty one."""
        found, waiting = [], [self.url]
        while waiting:
            folder = waiting.pop()
            with suppress(FileNotFoundError):
                for info in self.retry.call(folder, partial(self.fs.ls, folder, detail=True)):
                    if info["type"] == "directory":
                        waiting.append(info["name"])
                    else:
                        found.append(info)
        return found

    def _put(self, path: str, url: str) -> None:
        self.fs.put_file(path, url)
        expected, got = os.stat(path).st_size, self.fs.info(url)["size"]
        if got != expected:
            raise OSError(f"{got} bytes are there, after {expected} were written")

    def _list(self, kind: str) -> list[str]:
        if self.is_web:
            return []  # it cannot be asked
        try:
            entries = self.retry.call(self.url, lambda: self.fs.ls(self.url, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        here = self.fs._strip_protocol(self.url).rstrip("/")
        names = (entry["name"].rstrip("/") for entry in entries if entry["type"] == kind)
        return sorted(name.rpartition("/")[2] for name in names if name != here)


class _Ranges(io.RawIOBase):
    """A remote file that is read in ranges; each request is tried again by itself."""

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0
        self._rest = b""  # from _at on, of a web server that has sent more than was asked for

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at != self._at:
            self._at, self._rest = at, b""
        return at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        url, begin = self._folder.path(self._name), self._at
        data = self._rest or self._folder.retry.call(url, lambda: self._some(begin, end))
        num_bytes = min(len(data), end - begin)
        buffer[:num_bytes] = data[:num_bytes]
        self._rest = data[num_bytes:]
        self._at += num_bytes
        return num_bytes

    def _some(self, begin: int, end: int) -> bytes:
        data = self._folder.read_range(self._name, begin, end)
        if not data:
            raise OSError(f"no bytes from {begin} on, expected them up to {self._size}")
        return data
