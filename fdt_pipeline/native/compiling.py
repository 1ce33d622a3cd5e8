"""From a recipe to a shared library: compilers side by side, then the linker."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native.recipe import Recipe
from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable

SHOWN_LINES = 40  # of what the compiler says
_POLL_SECONDS = 0.01


class BuildFailed(NativeUnavailable):
    """A compiler or the linker failed; the message has its own words, the command, and the way out."""


@dataclass(frozen=True)
class _Command:
    words: list[str]
    log: Path


def compile_library(recipe: Recipe, folder: Path) -> Path:
    """The library, in an empty folder for everything that comes between. BuildFailed; NativeUnavailable."""
    if isinstance(recipe.toolchain, NativeUnavailable):
        raise recipe.toolchain
    compiler = list(recipe.toolchain.compiler.command)
    compilations, objects = [], []
    for unit in recipe.units:
        result = folder / f"{unit.name}.o"
        words = [*compiler, *unit.flags, *unit.paths, "-c", str(unit.source), "-o", str(result)]
        compilations.append(_Command(words, folder / f"{unit.name}.log"))
        objects.append(str(result))
    _run(compilations, folder)
    library = folder / "library.so"
    words = [*compiler, *objects, *recipe.link_paths, *recipe.link, "-o", str(library)]
    _run([_Command(words, folder / "link.log")], folder)
    return library


def _run(commands: Sequence[_Command], folder: Path) -> None:
    """As many at a time as there are cores for us. Whatever ends this (Ctrl-C, a failure) ends all of them."""
    waiting = list(commands)
    running: dict[subprocess.Popen[bytes], _Command] = {}
    with _ended_in_any_case(running):
        while waiting or running:
            while waiting and len(running) < available_cpus():
                command = waiting.pop(0)
                running[_start(command, folder)] = command
            for process in [process for process in running if process.poll() is not None]:
                command = running.pop(process)
                if process.returncode == -signal.SIGINT:  # Ctrl-C reaches the whole group, us perhaps a little later
                    raise KeyboardInterrupt
                if process.returncode:
                    raise BuildFailed(_explain(command, process.returncode))
            time.sleep(_POLL_SECONDS)


def _start(command: _Command, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    with command.log.open("wb") as log:
        return subprocess.Popen(
            command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


@contextmanager
def _ended_in_any_case(running: dict[subprocess.Popen[bytes], _Command]) -> Iterator[None]:
    """SIGTERM and not SIGKILL: g++ then ends the compiler proper, which is a process of its own."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


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
