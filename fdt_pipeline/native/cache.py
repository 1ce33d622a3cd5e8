"""Where built libraries are kept, and how a whole one is recognized.

A file is named PRODUCT-KEY-SHA256.so: a recipe's key and the hash of the file's own bytes. So a library appears whole
by one rename, a damaged one is noticed before it is loaded (loading it could end in SIGBUS), and looking takes neither
a lock nor the right to write. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from pathlib import Path

from fdt_pipeline.native import WAY_OUT, NativeUnavailable
from fdt_pipeline.storage.atomic import sync_folder

VARIABLE = "FDT_PIPELINE_CACHE"
LOCK = "build.lock"


def cache_folder() -> Path:
    """$FDT_PIPELINE_CACHE, else fdt_pipeline in $XDG_CACHE_HOME, else in ~/.cache; it need not exist."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.path.expanduser("~")
    home = home if os.path.isabs(home) else "/"  # a container's user may have none
    return (Path(base) if os.path.isabs(base) else Path(home, ".cache")) / "fdt_pipeline"


def temporary_folder() -> Path:
    """This user's own folder below the system's temporary one; it need not exist."""
    return Path(tempfile.gettempdir()) / f"fdt_pipeline-{os.getuid()}"


def find(name: str) -> Path | None:
    """The newest whole library of this name (PRODUCT-KEY), or None."""
    temporary = temporary_folder()
    for folder in [cache_folder(), *([temporary] if _is_private(temporary) else [])]:
        try:
            files = sorted(folder.glob(f"{name}-*.so"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            found = next(filter(_is_whole, files), None)
        except OSError:  # no folder, no right to read it, or a file was removed meanwhile
            continue
        if found is not None:
            return found
    return None


def writable_folder() -> Path:
    """The cache, or with a warning this user's temporary folder. NativeUnavailable where neither can be written to."""
    folder = cache_folder()
    problem = why_not_writable(folder)
    if problem is None:
        return folder
    temporary = temporary_folder()
    try:
        temporary.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NativeUnavailable(
            f"neither {folder} nor {temporary} can be written to ({error.strerror}): set {VARIABLE}; {WAY_OUT}"
        ) from error
    if not _is_private(temporary):  # somebody else was there first, and code is loaded from it
        raise NativeUnavailable(
            f"{temporary} is not a folder of this user alone (mode 0700), so no code is loaded from it: "
            f"remove it, or set {VARIABLE} to a folder that can be written to; {WAY_OUT}"
        )
    warnings.warn(
        f"the cache {folder} cannot be written to ({problem}) and does not have the native operators for what is "
        f"installed here: they are built in {temporary}; set {VARIABLE} to a folder that lasts",
        RuntimeWarning,
        stacklevel=2,
    )
    return temporary


def why_not_writable(folder: Path) -> str | None:
    """None if files can be made in it, or where it will be made. By trying: root may write where access() says no."""
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return error.strerror or str(error)
    lock = folder / LOCK
    if os.path.lexists(lock) and not os.access(lock, os.W_OK):  # in this order, as another may make it meanwhile
        return "its lock belongs to somebody else"
    return None


def publish(library: Path, name: str, folder: Path) -> Path:
    """Move a new library, which is on the same file system, to where `find` finds it, in one step."""
    with library.open("rb+") as file:
        os.fsync(file.fileno())
    place = folder / f"{name}-{_hash(library)}.so"
    os.replace(library, place)
    sync_folder(folder)
    return place


def _is_private(folder: Path) -> bool:
    """Whether this is a true folder (no link to one) of this user that nobody else may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _is_whole(library: Path) -> bool:
    """Whether a library has the hash that its name says; 2 ms a megabyte."""
    return library.stem.rpartition("-")[2] == _hash(library)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
