"""Where files lie: local folders and, through fsspec, object stores. See README.md."""

from __future__ import annotations

import os
from pathlib import Path

from .folder import LocalFolder
from .places import located, place_of
from .remote import RemoteFolder

__all__ = ["Folder", "is_url", "located", "open_folder", "place_of"]

Folder = LocalFolder | RemoteFolder


def open_folder(location: str | os.PathLike[str] | Folder) -> Folder:
    """A path, or a URL ("scheme://...") that fsspec knows; file:// is a path."""
    if isinstance(location, Folder):
        return location
    text = os.fspath(location)
    if text[:7].lower() == "file://":
        text = text[7:]
    return RemoteFolder(text) if is_url(text) else LocalFolder(Path(text))


def is_url(text: str) -> bool:
    """Whether it looks like any URL: one that nobody knows is an error, and not the name of a local folder."""
    return "://" in text
