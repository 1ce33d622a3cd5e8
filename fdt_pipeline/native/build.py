"""From a recipe to a library in the cache: found there, or built by one process while the others wait."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT, NativeUnavailable, cache, processor, require_turned_on
from fdt_pipeline.native.recipe import Recipe, operator_recipe
from fdt_pipeline.storage.atomic import remedy

SHOWN_LINES = 40  # of the compiler's messages
_BUILDING = "building-"  # how the folders of running builds begin
_POLL_SECONDS = 0.01


class BuildFailed(NativeUnavailable):
    """A compiler or the linker failed; the message has the compiler's own, the command, and the way out."""


@dataclass(frozen=True)
class Library:
    """A library in the cache, and the seconds that this process took to make it: 0 if it was there."""

    path: Path
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """The recipe's key, as in the name of the file."""
        return "-".join(self.path.stem.split("-")[1:3])


@dataclass(frozen=True)
class Availability:
    """Whether the native engine is `usable`, and why; `library` where it has been built already."""

    usable: bool
    reason: str
    library: Path | None = None

    def __bool__(self) -> bool:
        return self.usable


def build(force: bool = False) -> Library:
    """The operators for the installed DALI, compiled now if they are not in the cache, or if `force`.

    NativeUnavailable says why they cannot be had.
    """
    return obtain(operator_recipe(), force)


def availability() -> Availability:
    """As far as can be said without compiling; a last build that failed counts as a no."""
    try:
        require_turned_on()
        recipe = operator_recipe()
    except ImportError as obstacle:
        return Availability(False, str(obstacle))
    if processor.level() is None:
        return Availability(False, "the native engine needs a processor with SSE4.2 (x86-64-v2)")
    library = cache.find(recipe)
    if library is not None:
        return Availability(True, "it has been built", library)
    if isinstance(recipe.toolchain, NativeUnavailable):
        return Availability(False, str(recipe.toolchain))
    for folder in (cache.cache_folder(), cache.temporary_folder()):
        if _log(recipe, folder).exists():
            failure = _log(recipe, folder).read_text()
            return Availability(False, f"the last build failed, fdt-pipeline build tries again. {failure}")
    return Availability(True, "not built yet: that is done at first use, or by fdt-pipeline build")


def obtain(recipe: Recipe, force: bool = False) -> Library:
    """The recipe's library. The cache is searched before a compiler, a lock, or the right to write is asked for."""
    found = None if force else cache.find(recipe)
    if found is not None:
        return Library(found)
    if isinstance(recipe.toolchain, NativeUnavailable):
        raise recipe.toolchain
    folder = cache.writable_folder()
    try:
        return _build_in(folder, recipe, force)
    except OSError as error:  # a full disk and the like
        raise NativeUnavailable(
            f"the native engine could not be built in {folder} ({error.strerror or error}): "
            f"{remedy(error)}, or set {cache.VARIABLE} to another folder; {WAY_OUT}"
        ) from error


def _build_in(folder: Path, recipe: Recipe, force: bool) -> Library:
    folder.mkdir(parents=True, exist_ok=True)
    log = _log(recipe, folder)
    before = _state(log)
    with FileLock(folder / cache.LOCK):
        found = None if force else cache.find(recipe)
        if found is not None:  # another process built it while this one waited
            return Library(found)
        if not force and _state(log) not in (None, before):  # its build failed, so this one would, too
            raise BuildFailed(log.read_text())
        for left in folder.glob(f"{_BUILDING}*"):  # by builders that were killed
            shutil.rmtree(left, ignore_errors=True)
        cache.remove_damaged(recipe, folder)
        print(f"fdt_pipeline: compiling the native {recipe.title}, once, into {folder}", file=sys.stderr, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as work:
            try:
                library = compile_library(recipe, Path(work))
            except BuildFailed as failure:
                log.write_text(str(failure))
                raise
            if not recipe.is_current():  # the key would be that of other sources
                raise NativeUnavailable(f"the sources were changed while they were compiled: try again; {WAY_OUT}")
            path = cache.publish(library, recipe, folder)
        log.unlink(missing_ok=True)
        return Library(path, time.monotonic() - started)


def _log(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}.failed.txt"


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class _Command(NamedTuple):
    words: list[str]
    log: Path


def compile_library(recipe: Recipe, folder: Path) -> Path:
    """Compile and link in an empty folder, which takes all files on the way."""
    assert not isinstance(recipe.toolchain, NativeUnavailable)
    compiler = list(recipe.toolchain.compiler.command)
    compilations, objects = [], []
    for unit in recipe.units:
        result = folder / f"{unit.name}.o"
        words = [*compiler, *unit.flags, *unit.paths, "-c", str(unit.source), "-o", str(result)]
        compilations.append(_Command(words, folder / f"{unit.name}.log"))
        objects.append(str(result))
    _run(compilations)
    library = folder / "library.so"
    words = [*compiler, *objects, *recipe.link_paths, *recipe.link, "-o", str(library)]
    _run([_Command(words, folder / "link.log")])
    return library


def _run(commands: Sequence[_Command]) -> None:
    """As many at a time as there are CPUs. Whatever ends this (Ctrl-C, a failure) ends all of them."""
    waiting = list(commands)
    running: dict[subprocess.Popen[bytes], _Command] = {}
    try:
        while waiting or running:
            while waiting and len(running) < available_cpus():
                command = waiting.pop(0)
                running[_start(command)] = command
            for process in [process for process in running if process.poll() is not None]:
                command = running.pop(process)
                if (
                    process.returncode == -signal.SIGINT
                ):  # Ctrl-C reaches the whole group, Python perhaps a little later
                    raise KeyboardInterrupt
                if process.returncode:
                    raise BuildFailed(_explain(command, process.returncode))
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running:
            process.terminate()  # and not kill(): g++ then ends the compiler proper, which is a process of its own
        for process in running:
            process.wait()


def _start(command: _Command) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(command.log.parent)}
    with command.log.open("wb") as log:
        return subprocess.Popen(
            command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _explain(command: _Command, code: int) -> str:
    lines = command.log.read_text(errors="replace").splitlines()
    shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]) or "    (it said nothing)"
    if len(lines) > SHOWN_LINES:
        shown = f"    ({len(lines) - SHOWN_LINES} lines before)\n{shown}"
    ended = f"exit code {code}" if code > 0 else f"signal {-code}"
    return (
        f"the native engine could not be compiled ({ended}). The compiler says:\n{shown}\n"
        f"the command was:\n    {shlex.join(command.words)}\n{WAY_OUT}"
    )
