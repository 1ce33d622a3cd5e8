"""From a recipe to a library in the cache: found there, or built by one process while the others wait."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fdt_pipeline.native import cache
from fdt_pipeline.native.compiling import BuildFailed, compile_library
from fdt_pipeline.native.lock import exclusive, may_lock
from fdt_pipeline.native.recipe import Recipe, core_recipe, operator_recipe
from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable
from fdt_pipeline.storage.atomic import remedy

_BUILDING = "building-"  # how the folders of running builds begin


@dataclass(frozen=True)
class Library:
    """A library in the cache, and how long its making took this process: 0 if it was there."""

    path: Path
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Of what was built and of the toolchain that built it, as in the name of the file."""
        return "-".join(self.path.stem.split("-")[1:3])


def library_path() -> Path:
    """The operators for the installed DALI, compiled now if they have not been. NativeUnavailable says why not."""
    return obtain(operator_recipe()).path


def build(force: bool = False) -> Library:
    """The same, with what a report needs; `force` compiles them again."""
    return obtain(operator_recipe(), force)


def build_core(extra_flags: Sequence[str] = ()) -> Path:
    """The same sources without DALI, for ctypes; `extra_flags` such as -fsanitize=address come last."""
    return obtain(core_recipe(extra_flags)).path


def obtain(recipe: Recipe, force: bool = False) -> Library:
    """Looks in the cache before it asks for a compiler, a lock, or the right to write."""
    found = None if force else look(recipe)
    if found is not None:
        return Library(found)
    if isinstance(recipe.toolchain, NativeUnavailable):
        raise recipe.toolchain
    return _build_in(_writable_folder(), recipe, force)


def look(recipe: Recipe) -> Path | None:
    """A library that has been built before, or None."""
    return next(filter(None, (cache.find(recipe, folder) for folder in cache.places())), None)


def last_failure(recipe: Recipe, folder: Path) -> str | None:
    """What the last build in a folder failed with; None if there was none, or it went well."""
    try:
        return _log(recipe, folder).read_text()
    except OSError:
        return None


def _writable_folder() -> Path:
    folder = cache.cache_folder()
    problem = why_not_writable(folder)
    if problem is None:
        return folder
    temporary = cache.make_temporary_folder()
    warnings.warn(
        f"the cache {folder} cannot be written to ({problem}) and does not have the native operators for what is "
        f"installed here: they are built in {temporary}; set {cache.VARIABLE} to a folder that lasts",
        RuntimeWarning,
        stacklevel=2,
    )
    return temporary


def why_not_writable(folder: Path) -> str | None:
    """None if files can be made in it, or where it is to be made. By trying: root may write where access() says no."""
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=place):
            return None if may_lock(folder) else "its lock belongs to somebody else"
    except OSError as error:
        return error.strerror or str(error)


def _build_in(folder: Path, recipe: Recipe, force: bool) -> Library:
    log = _log(recipe, folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        before = _state(log)
        with exclusive(folder) as alone:
            found = None if force else cache.find(recipe, folder)
            if found is not None:  # built by another while we waited
                return Library(found)
            if not force and _state(log) not in (None, before):
                raise BuildFailed(log.read_text())  # by another while we waited: the same would happen to us
            if alone:
                _clean(recipe, folder)
            return _compile(recipe, folder)


def _compile(recipe: Recipe, folder: Path) -> Library:
    print(f"fdt_pipeline: compiling the native {recipe.title}, once, into {folder}", file=sys.stderr, flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as work:
        try:
            library = compile_library(recipe, Path(work))
        except BuildFailed as failure:
            _log(recipe, folder).write_text(str(failure))
            raise
        if not recipe.is_current():  # the key would be that of other sources
            raise NativeUnavailable(f"{recipe.sources} was changed while it was compiled: try again; {WAY_OUT}")
        path = cache.publish(library, recipe, folder)
    _log(recipe, folder).unlink(missing_ok=True)
    return Library(path, time.monotonic() - started)


def _clean(recipe: Recipe, folder: Path) -> None:
    """What builders that were killed have left; nobody else builds now."""
    for left in folder.glob(f"{_BUILDING}*"):
        shutil.rmtree(left, ignore_errors=True)
    cache.remove_damaged(recipe, folder)


def _log(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}.failed.txt"


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """A full disk and the like become NativeUnavailable."""
    try:
        yield
    except OSError as error:
        raise NativeUnavailable(
            f"the native engine could not be built in {folder} ({error.strerror or error}): "
            f"{remedy(error)}, or set {cache.VARIABLE} to another folder; {WAY_OUT}"
        ) from error
