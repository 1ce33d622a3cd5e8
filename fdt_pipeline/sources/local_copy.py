"""Data sets of a few files that lie at an fsspec URL, copied here to be opened."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from ..storage.remote import RemoteFolder
from .image_files import extension
from .remote_tree import RemoteTree

MAX_FILES = 200  # the official sets have up to 10


@lru_cache(maxsize=8)
def local_copy(url: str) -> Path:
    """A folder, or a file where the URL names one, that is removed when the interpreter ends; of the same name, which
    may say what it is."""
    above, _, name = url.rpartition("/")
    temporary = tempfile.mkdtemp(prefix="fdt-pipeline-source-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    if extension(name) in (".npz", ".mat"):
        return _copied(RemoteFolder(above), name, Path(temporary))
    place = Path(temporary) / (name or "source")
    tree, folder = RemoteTree(url), RemoteFolder(url)
    names = tree.walk("")
    if not names:
        raise ValueError(f"{url}: no files there; give the URL of a data set")
    if len(names) > MAX_FILES:
        raise ValueError(
            f"{url}: {len(names)} files, which are no image folder; expected those of an official data set, at most "
            f"{MAX_FILES}; name the folder that holds them"
        )
    for file in names:
        _copied(folder, file, place)
    return place


def _copied(folder: RemoteFolder, name: str, place: Path) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.open(name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
    return path
