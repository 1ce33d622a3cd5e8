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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT, NativeUnavailable, cache
from fdt_pipeline.native.recipe import Recipe, operator_recipe
from fdt_pipeline.storage.atomic import remedy

SHOWN_LINES = 40  # of the compiler's messages
_BUILDING = "building-"  # how the folders of running builds begin


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
        return self.path.stem.split("-")[1]


def build(force: bool = False) -> Library:
    """The operators for the installed DALI, compiled now if they are not in the cache, or if `force`.

    NativeUnavailable says why they cannot be had.
    """
    return obtain(operator_recipe(), force)


def obtain(recipe: Recipe, force: bool = False) -> Library:
    """The recipe's library. The cache is searched before a compiler, a lock, or the right to write is asked for."""
    found = None if force else cache.find(recipe.name)
    if found is not None:
        return Library(found)
    commands = recipe.commands()
    folder = cache.writable_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / cache.LOCK):
            found = None if force else cache.find(recipe.name)
            if found is not None:  # another process built it while this one waited
                return Library(found)
            return _build_in(folder, recipe, commands)
    except OSError as error:  # a full disk and the like
        raise NativeUnavailable(
            f"the native engine could not be built in {folder} ({error.strerror or error}): "
            f"{remedy(error)}, or set {cache.VARIABLE} to another folder; {WAY_OUT}"
        ) from error


def _build_in(folder: Path, recipe: Recipe, commands: Sequence[list[str]]) -> Library:
    """For the holder of the lock."""
    for left in folder.glob(f"{_BUILDING}*"):  # by builders that were killed
        shutil.rmtree(left, ignore_errors=True)
    print(f"fdt_pipeline: compiling the native {recipe.title}, once, into {folder}", file=sys.stderr, flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as work:
        library = compile_library(commands, Path(work))
        if not recipe.is_current():  # the key would be that of other sources
            raise NativeUnavailable(f"the sources were changed while they were compiled: try again; {WAY_OUT}")
        path = cache.publish(library, recipe.name, folder)
    return Library(path, time.monotonic() - started)


def compile_library(commands: Sequence[list[str]], folder: Path) -> Path:
    """Run a recipe's commands in an empty folder, which takes all files on the way."""
    _run(commands[:-1], folder)
    _run(commands[-1:], folder)
    return folder / "library.so"


def _run(commands: Sequence[list[str]], folder: Path) -> None:
    """As many at a time as there are CPUs. Whatever ends this (Ctrl-C, a failure) ends all of them."""
    running: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}

    def run(words: list[str]) -> None:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env=environment, text=True, errors="replace",
        )  # fmt: skip
        running.append(process)
        said, _ = process.communicate()
        if process.returncode == -signal.SIGINT:  # Ctrl-C reaches the whole group, Python perhaps a little later
            raise KeyboardInterrupt
        if process.returncode:
            raise BuildFailed(_explain(words, process.returncode, said))

    with ThreadPoolExecutor(available_cpus()) as threads:
        try:
            for done in as_completed([threads.submit(run, words) for words in commands]):
                done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()  # and not kill(): g++ then ends the compiler proper, a process of its own


def _explain(words: list[str], code: int, said: str) -> str:
    lines = said.splitlines()
    shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]) or "    (it said nothing)"
    if len(lines) > SHOWN_LINES:
        shown = f"    ({len(lines) - SHOWN_LINES} lines before)\n{shown}"
    ended = f"exit code {code}" if code > 0 else f"signal {-code}"
    return (
        f"the native engine could not be compiled ({ended}). The compiler says:\n{shown}\n"
        f"the command was:\n    {shlex.join(words)}\n{WAY_OUT}"
    )
