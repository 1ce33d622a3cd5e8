"""The files below an fsspec URL."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import Any, BinaryIO

from ..storage.remote import RemoteFolder
from . import tree

# What stores and web servers say of a file that is different when it has changed.
_CHANGING = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created"),
)


class RemoteTree:
    """See `Tree`. Listed once, in one go; what lies there is then taken to stay."""

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)
        self._too_large: dict[str, int] = {}

    @property
    def url(self) -> str:
        return self._folder.url

    def __getstate__(self) -> dict[str, Any]:
        """Without the listing: whoever reads a few files of a million need not have the names of all."""
        return {"_folder": self._folder, "_too_large": self._too_large}

    def folders(self, below: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(below) if "/" in name})

    def files(self, below: str) -> list[str]:
        return [name for name in self._below(below) if "/" not in name]

    def walk(self, below: str) -> list[str]:
        return self._below(below)

    def read(self, name: str) -> bytes:
        tree.check_size(self._too_large.get(name, 0))
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

    def _below(self, below: str) -> list[str]:
        """Found by halving: a look at all names for each of 1,000 classes took minutes."""
        names, prefix = self._names, f"{below}/" if below else ""
        first = bisect_left(names, prefix)
        last = bisect_left(names, f"{below}0") if below else len(names)  # "0" comes next after "/"
        return sorted((name[len(prefix) :] for name in names[first:last]), key=lambda name: name.split("/"))

    @cached_property
    def _names(self) -> list[str]:
        """Of every file that is not hidden, sorted as text."""
        sizes = {name: int(info.get("size") or 0) for name, info in self._folder.files_below().items()}
        self._too_large = {name: size for name, size in sizes.items() if size > tree.MAX_FILE_BYTES}
        return sorted(name for name in sizes if not any(part.startswith(".") for part in name.split("/")))
