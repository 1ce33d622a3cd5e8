"""The files below a folder or URL, by their names relative to it with "/" between the parts; hidden ones are left out.

Files whose extension clearly says something else (.txt, .json, ...) are not images: one warning counts and names them.
Every other file must be an image: one that is not is an error when it is asked for.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..storage.remote import RemoteFolder

MAX_FILE_BYTES = 2 << 30
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_NOT_IMAGES = """
.7z .bz2 .cfg .conf .csv .dat .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js .json .jsonl .lnk .log .md
.md5 .npy .npz .parquet .pdf .pickle .pkl .proto .pt .pth .py .pyc .rar .rst .sh .sha256 .sqlite .tar .tex .tgz
.toml .tsv .txt .url .xls .xlsx .xml .xz .yaml .yml .zip .zst .avi .mkv .mov .mp3 .mp4 .wav
"""
NOT_IMAGES = frozenset(_NOT_IMAGES.split())
# What stores and web servers say of a file that is different when it has changed.
_CHANGING = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created"),
)


class Tree(Protocol):
    """Picklable, without what it may have listed."""

    @property
    def url(self) -> str: ...

    def folders(self, below: str) -> list[str]:
        """Names of the folders directly in `below` ("" is the tree itself), sorted; [] if it is none."""

    def files(self, below: str) -> list[str]:
        """Names of the files directly in it, sorted."""

    def walk(self, below: str) -> list[str]:
        """Names of all files below it, relative to it; sorted part by part."""

    def read(self, name: str) -> bytes:
        """ValueError if it is not a file of at most 2 GiB, or none at all; OSError if it cannot be read."""

    def open(self, name: str) -> BinaryIO: ...

    def state(self, name: str) -> str:
        """A str that is different when the file has changed."""


class LocalTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def __getstate__(self) -> dict[str, Path]:
        """An absolute path, as another process may have another working directory."""
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
    """ValueError if a path is no regular file, before it is opened: opening a named pipe would wait forever."""
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
    except OSError:  # a link that leads to itself; the error is raised when the file is asked for
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


class RemoteTree:
    """A `Tree` at a URL. It is listed once; later changes of the listing are not seen."""

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)
        self._too_large: dict[str, int] = {}

    @property
    def url(self) -> str:
        return self._folder.url

    def __getstate__(self) -> dict[str, Any]:
        """Without the listing: a worker that reads a few files of a million need not have the names of all."""
        return {"_folder": self._folder, "_too_large": self._too_large}

    def folders(self, below: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(below) if "/" in name})

    def files(self, below: str) -> list[str]:
        return [name for name in self._below(below) if "/" not in name]

    def walk(self, below: str) -> list[str]:
        return self._below(below)

    def read(self, name: str) -> bytes:
        check_size(self._too_large.get(name, 0))
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
        """Names below a folder, by bisection: a scan of all names for each of 1,000 classes took minutes."""
        names, prefix = self._names, f"{below}/" if below else ""
        first = bisect_left(names, prefix)
        last = bisect_left(names, f"{below}0") if below else len(names)  # "0" comes next after "/"
        return sorted((name[len(prefix) :] for name in names[first:last]), key=lambda name: name.split("/"))

    @cached_property
    def _names(self) -> list[str]:
        """The names of all files that are not hidden, sorted as text."""
        sizes = {name: int(info.get("size") or 0) for name, info in self._folder.files_below().items()}
        self._too_large = {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}
        return sorted(name for name in sizes if not any(part.startswith(".") for part in name.split("/")))


def image_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if not clearly_not_an_image(name)]


def clearly_not_an_image(name: str) -> bool:
    return extension(name) in NOT_IMAGES


def extension(name: str) -> str:
    """The extension in lower case, with its dot; "" if there is none."""
    last = name.rpartition("/")[2]
    stem, dot, after = last.rpartition(".")
    return f".{after.lower()}" if dot and stem else ""


def warn_ignored(where: str, names: Iterable[str]) -> None:
    ignored = [name for name in names if clearly_not_an_image(name)]
    if ignored:
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        warnings.warn(f"{where}: ignored {len(ignored)} files that are no images: {shown}", stacklevel=2)


def loose_files(tree: Tree, below: str) -> list[str]:
    """The files that lie beside the subfolders; ValueError if one may be an image: it has no label."""
    files = tree.files(below)
    images = image_files(files)
    if images:
        names = ", ".join(images[:3])
        where = joined(tree.url, below)
        raise ValueError(f"{where}: {len(images)} images lie beside the class folders: {names}; move or remove them")
    return files


def joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
