"""Where built libraries are kept, and how one is known to be whole.

A file is named PRODUCT-WHAT-TOOLCHAIN-SHA256.so: two halves of a key (recipe.py) and the hash of its own bytes. So a
library appears whole by one rename, a damaged one is noticed before it is loaded (loading it could end in SIGBUS), and
looking takes neither a lock nor the right to write. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from fdt_pipeline.native.recipe import Recipe
from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable
from fdt_pipeline.storage.atomic import sync_folder

VARIABLE = "FDT_PIPELINE_CACHE"
_DIGITS = 32  # of the SHA-256, in names


def cache_folder() -> Path:
    """$FDT_PIPELINE_CACHE, else fdt_pipeline in $XDG_CACHE_HOME, else in ~/.cache; it need not exist."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else _home() / ".cache") / "fdt_pipeline"


def _home() -> Path:
    """A container's user may have none: then /, as Docker has it."""
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else "/")


def temporary_folder() -> Path:
    """For this user alone, below the system's folder for temporary files; it need not exist."""
    return Path(tempfile.gettempdir()) / f"fdt_pipeline-{os.getuid()}"


def make_temporary_folder() -> Path:
    """NativeUnavailable where somebody else has been there before us: code is loaded from it."""
    folder = temporary_folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NativeUnavailable(
            f"neither {cache_folder()} nor {folder} can be written to ({error.strerror}): set {VARIABLE}; {WAY_OUT}"
        ) from error
    if not is_private(folder):
        raise NativeUnavailable(
            f"{folder} is not a folder of this user alone (mode 0700), so no code is loaded from it: "
            f"remove it, or set {VARIABLE} to a folder that can be written to; {WAY_OUT}"
        )
    return folder


def is_private(folder: Path) -> bool:
    """A true folder (no link to one), owned by us, that nobody else may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def places() -> list[Path]:
    """Where a library may be found, the best first."""
    temporary = temporary_folder()
    return [cache_folder(), *([temporary] if is_private(temporary) else [])]


def find(recipe: Recipe, folder: Path) -> Path | None:
    """The newest whole library of this recipe in a folder, or None."""
    toolchain = recipe.toolchain_key or "*"
    names = f"{recipe.what['product']}-{recipe.what_key}-{toolchain}-*.so"
    try:
        files = sorted(folder.glob(names), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        return next((file for file in files if is_whole(file)), None)
    except OSError:  # no folder, no right to read it, or removed while we looked
        return None


def is_whole(library: Path) -> bool:
    """Whether a library has the hash that its name says; 2 ms a megabyte."""
    return library.stem.rpartition("-")[2] == _hash(library)


def publish(library: Path, recipe: Recipe, folder: Path) -> Path:
    """Move a new library, which lies on the same file system, to where `find` finds it, in one step."""
    with library.open("rb+") as file:
        os.fsync(file.fileno())
    place = folder / f"{recipe.name}-{_hash(library)}.so"
    os.replace(library, place)
    sync_folder(folder)
    return place


def remove_damaged(recipe: Recipe, folder: Path) -> None:
    """To be called by the holder of the lock."""
    for file in folder.glob(f"{recipe.name}-*.so"):
        if not is_whole(file):
            file.unlink(missing_ok=True)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]
