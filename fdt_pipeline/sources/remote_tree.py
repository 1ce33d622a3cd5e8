"""The files below an fsspec URL."""

from __future__ import annotations

from functools import cached_property
from typing import Any, BinaryIO

from ..storage.remote import RemoteFolder
from .tree import check_size


class RemoteTree:
    """See `Tree`. Listed once, in one go; what lies there is then taken to stay."""

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)

    @property
    def url(self) -> str:
        return self._folder.url

    def __getstate__(self) -> dict[str, Any]:
        """Without the listing: whoever reads a few files of a million need not have the names of all."""
        return {"_folder": self._folder}

    def folders(self, below: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(below) if "/" in name})

    def files(self, below: str) -> list[str]:
        return [name for name in self._below(below) if "/" not in name]

    def walk(self, below: str) -> list[str]:
        return self._below(below)

    def read(self, name: str) -> bytes:
        if name in self.__dict__.get("_sizes", {}):
            check_size(self._sizes[name])
        return self._folder.read(name)

    def open(self, name: str) -> BinaryIO:
        return self._folder.open(name)

    def state(self, name: str) -> str:
        """What the store tells of it: a hash, or size and time."""
        try:
            info = self._folder.fs.info(self._folder.path(name))
        except FileNotFoundError:
            return "missing"
        known = (info.get(field) for field in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
        return f"{info.get('size')}:{':'.join(str(value) for value in known if value is not None)}"

    def _below(self, below: str) -> list[str]:
        prefix = f"{below}/" if below else ""
        found = (name[len(prefix) :] for name in self._sizes if name.startswith(prefix))
        return sorted(found, key=lambda name: name.split("/"))

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Of every file that is not hidden, by name."""
        folder = self._folder
        found = folder.retry.call(folder.url, lambda: folder.fs.find(folder.url, detail=True))
        root = folder.fs._strip_protocol(folder.url).rstrip("/") + "/"
        names = {path.removeprefix(root): int(info.get("size") or 0) for path, info in found.items()}
        return {name: size for name, size in names.items() if not any(part.startswith(".") for part in name.split("/"))}
