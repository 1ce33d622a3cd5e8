"""From a recipe to a library in the cache: found there, or built by one process while the others wait.

A file is named PRODUCT-KEY-SHA256.so: a recipe's key and the hash of the file's own bytes. So a library appears whole
by one rename, a damaged one is noticed before it is loaded (loading it could end in SIGBUS), and looking takes neither
a lock nor the right to write. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT, NativeUnavailable
from fdt_pipeline.native.recipe import Recipe, operator_recipe

VARIABLE = "FDT_PIPELINE_CACHE"
LOCK = "build.lock"
SHOWN_LINES = 40  # of the compiler's messages
_BUILDING = "building-"  # how the folders of running builds begin


class BuildFailed(NativeUnavailable):
    """A compiler or the linker failed; the message has the compiler's own, the command, and the way out."""


class Library(NamedTuple):
    """A library in the cache, and the seconds that this process took to make it: 0 if it was there."""

    path: Path
    seconds: float = 0.0


def build(force: bool = False) -> Library:
    """The operators for the installed DALI, compiled now if they are not in the cache, or if `force`.

    NativeUnavailable says why they cannot be had.
    """
    return obtain(operator_recipe(), force)


def obtain(recipe: Recipe, force: bool = False) -> Library:
    """The recipe's library. It is searched for before a compiler, a lock, or the right to write is asked for.

    A new one is built in the cache or, with a warning, in this user's temporary folder.
    """
    name = recipe.name
    found = None if force else find(name)
    if found is not None:
        return Library(found)
    commands = recipe.commands()
    folder, temporary = cache_folder(), temporary_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _build_in(folder, name, commands, force)
    except OSError as error:  # no right to write, a full disk and the like
        problem = f"{folder} ({error.strerror or error})"
    try:
        temporary.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(temporary):  # somebody else was there first, and code is loaded from it
            raise PermissionError("not a folder of this user alone, with mode 0700")
        library = _build_in(temporary, name, commands, force)
    except OSError as error:
        raise NativeUnavailable(
            f"the native engine could be built neither in {problem} nor in {temporary} ({error.strerror or error}): "
            f"set {VARIABLE} to a folder that can be written to and has room; {WAY_OUT}"
        ) from error
    warnings.warn(
        f"the cache {problem} cannot be written to and does not have the native operators for what is installed here: "
        f"they were built in {temporary}; set {VARIABLE} to a folder that lasts",
        RuntimeWarning,
        stacklevel=2,
    )
    return library


def _build_in(folder: Path, name: str, commands: Sequence[list[str]], force: bool) -> Library:
    with FileLock(folder / LOCK):
        found = None if force else _newest_whole(folder, name)
        if found is not None:  # another process built it while this one waited
            return Library(found)
        for left in folder.glob(f"{_BUILDING}*"):  # by builders that were killed
            shutil.rmtree(left, ignore_errors=True)
        print(f"fdt_pipeline: compiling {name}, once, into {folder}", file=sys.stderr, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as work:
            library = compile_library(commands, Path(work))
            place = library.replace(folder / f"{name}-{_hash(library)}.so")
        return Library(place, time.monotonic() - started)


def compile_library(commands: Sequence[list[str]], folder: Path) -> Path:
    """Run a recipe's commands in an empty folder, which takes all files on the way: as many at a time as there are
    CPUs, and the link at the end. Ctrl-C ends the compilers as well, which a terminal sends it to."""
    run = partial(_run, folder=folder)
    with ThreadPoolExecutor(available_cpus()) as threads:
        list(threads.map(run, commands[:-1]))
    run(commands[-1])
    return folder / "library.so"


def _run(words: list[str], folder: Path) -> None:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
        env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stdout.splitlines() or ["(it said nothing)"]
        if len(lines) > SHOWN_LINES:
            lines = [f"({len(lines) - SHOWN_LINES} lines before)", *lines[-SHOWN_LINES:]]
        said = "\n    ".join(lines)
        raise BuildFailed(
            f"the native engine could not be compiled (exit code {done.returncode}). The compiler says:\n    {said}\n"
            f"the command was:\n    {shlex.join(words)}\n{WAY_OUT}"
        )


def cache_folder() -> Path:
    """$FDT_PIPELINE_CACHE, else fdt_pipeline in $XDG_CACHE_HOME, else in ~/.cache; it need not exist."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    base, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    home = home if os.path.isabs(home) else "/"  # a container's user may have none
    return (Path(base) if os.path.isabs(base) else Path(home, ".cache")) / "fdt_pipeline"


def temporary_folder() -> Path:
    """This user's own folder below the system's temporary one; it need not exist."""
    return Path(tempfile.gettempdir()) / f"fdt_pipeline-{os.getuid()}"


def find(name: str) -> Path | None:
    """The newest whole library of this name (PRODUCT-KEY), or None."""
    found = _newest_whole(cache_folder(), name)
    if found is None and _is_private(temporary_folder()):
        return _newest_whole(temporary_folder(), name)
    return found


def _newest_whole(folder: Path, name: str) -> Path | None:
    try:
        files = sorted(folder.glob(f"{name}-*.so"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        # 2 ms a megabyte.
        return next((file for file in files if file.stem.rpartition("-")[2] == _hash(file)), None)
    except OSError:  # no folder, no right to read it, or a file was removed meanwhile
        return None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _is_private(folder: Path) -> bool:
    """Whether this is a true folder (no link to one) of this user that nobody else may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
