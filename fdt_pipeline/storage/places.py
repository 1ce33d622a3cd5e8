"""Files that lie elsewhere than the folder that names them."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from .folder import LocalFolder
from .remote import RemoteFolder

_AnyFolder = LocalFolder | RemoteFolder


def located(folder: _AnyFolder, place: str) -> tuple[_AnyFolder, str]:
    """(the folder that holds a file, its name there).

    place: a name in `folder`, a path relative to it, an absolute path or a URL. ValueError if it leads above the root.
    """
    if "/" not in place:
        return folder, place
    above, _, name = place.rpartition("/")
    if "://" in place:
        return RemoteFolder(above), name
    if isinstance(folder, LocalFolder) or place.startswith("/"):
        # The real path: ".." of a link to a folder would lead beside what it links to.
        base = "/" if place.startswith("/") else os.path.realpath(folder.local or "/")
        return LocalFolder(Path(os.path.normpath(os.path.join(base, above or "/")))), name
    scheme, _, path = folder.url.partition("://")
    joined = posixpath.normpath(posixpath.join(path, above))
    if joined.startswith(".."):
        raise ValueError(f"{folder.url}: {place} leads above the store's root")
    return RemoteFolder(f"{scheme}://{joined}", folder.retry), name


def place_of(folder: _AnyFolder, there: _AnyFolder, name: str) -> str:
    """The file `name` of `there` as `located(folder, ...)` finds it: relative if it is in `folder`, below it, or below
    the folder above, so that they can be moved together; else absolute."""
    base, other = _parts(folder), _parts(there)
    if base[0] == other[0]:
        relative = posixpath.relpath(other[1], base[1])
        above = posixpath.dirname(base[1])
        if relative == ".":
            return name
        if not relative.startswith("..") or (above.strip("/") and not relative.startswith("../..")):
            return f"{relative}/{name}"
    return f"{other[1].rstrip('/')}/{name}" if not other[0] else f"{other[0]}://{other[1].strip('/')}/{name}"


def _parts(folder: _AnyFolder) -> tuple[str, str]:
    """(scheme, absolute path): "" for a local folder."""
    if isinstance(folder, LocalFolder):
        return "", os.path.realpath(folder.local)
    scheme, _, path = folder.url.partition("://")
    return scheme, "/" + path.strip("/")
