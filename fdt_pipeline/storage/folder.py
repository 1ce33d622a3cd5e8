"""What can be done with a folder of files, wherever it is."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from .local import LocalFolder
from .remote import RemoteFolder


class Folder(Protocol):
    """Names are of files directly in it, or below it ("sub/x"); they come from us, and may not lead out of it.

    Picklable, so that another process or machine can open the same one. OSError, naming the place, where it fails.
    """

    @property
    def url(self) -> str:
        """The path or URL, for messages."""

    @property
    def local(self) -> Path | None:
        """The path, if it is here."""

    def path(self, name: str) -> str:
        """Of a file, for messages."""

    def names(self) -> list[str]:
        """Of the files directly in it, sorted; [] if it does not exist."""

    def subfolders(self) -> list[str]:
        """Of the folders directly in it, sorted; [] if it does not exist."""

    def exists(self) -> bool: ...

    def is_file(self) -> bool:
        """Whether it is none."""

    def size(self, name: str) -> int | None:
        """In bytes; None if it is not there."""

    def read(self, name: str) -> bytes:
        """All of it; FileNotFoundError if it is not there."""

    def open(self, name: str) -> BinaryIO:
        """To read from, and seek in."""

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears whole when the block ends well, and not at all when it does not."""

    def move(self, old: str, new: str) -> None:
        """Replaces what is there."""

    def remove(self, name: str) -> None:
        """No error if it is not there."""

    def folder(self, name: str) -> Folder: ...

    def make(self) -> None:
        """With all above it; no error if it is there."""

    def remove_tree(self) -> None:
        """It, and all below it; no error if it is not there."""

    def sync(self) -> None:
        """Make what was moved and removed last through a power cut."""


def open_folder(location: str | os.PathLike[str] | Folder) -> Folder:
    """A path, or a URL ("scheme://...") that fsspec knows; file:// is a path."""
    if isinstance(location, (LocalFolder, RemoteFolder)):
        return location
    text = os.fspath(cast("str | os.PathLike[str]", location))
    if text[:7].lower() == "file://":
        text = text[7:]
    return RemoteFolder(text) if is_url(text) else LocalFolder(Path(text))


def is_url(text: str) -> bool:
    """Of whatever kind: a URL that nobody knows is an error, and not the name of a folder here."""
    return "://" in text
