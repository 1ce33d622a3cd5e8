"""The C++ compiler of this machine: $CXX where it is set, else g++, c++ or clang++."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass

from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable

CANDIDATES = ("g++", "c++", "clang++")
_OLDEST = {"gcc": 11, "clang": 12}  # the first to know -march=x86-64-v2 and above
_INSTALL = "apt-get install g++ (or dnf install gcc-c++, or conda install -c conda-forge gxx)"


@dataclass(frozen=True)
class Compiler:
    """A command, such as ("ccache", "/usr/bin/g++"), the whole of what its --version says, and its major release."""

    command: tuple[str, ...]
    version: str
    major: int

    @property
    def title(self) -> str:
        return self.version.splitlines()[0] if self.version else "unknown version"


def find_compiler() -> Compiler:
    """NativeUnavailable where there is none, or one that is too old."""
    command = _command()
    compiler = Compiler(command, _output(command, "--version"), _major(_output(command, "-dumpversion")))
    kind = "clang" if "clang" in compiler.version else "gcc"
    if compiler.major < _OLDEST[kind]:
        raise NativeUnavailable(
            f"{shlex.join(command)} is {compiler.title}, but the native engine needs g++ 11 or clang 12, or newer: "
            f"install one and say so with CXX=g++-12, say; {WAY_OUT}"
        )
    return compiler


def _command() -> tuple[str, ...]:
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked:
        program = shutil.which(asked[0])
        if program is None:
            raise NativeUnavailable(
                f"CXX={os.environ['CXX']} is not a program that can be run: unset CXX or {_INSTALL}"
            )
        return program, *asked[1:]
    for name in CANDIDATES:
        program = shutil.which(name)
        if program is not None:
            return (program,)
    raise NativeUnavailable(
        f"no C++ compiler ({', '.join(CANDIDATES)} or $CXX) was found, and the native engine is compiled at first use: "
        f"{_INSTALL}; {WAY_OUT}"
    )


def _output(command: tuple[str, ...], option: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [*command, option], capture_output=True, text=True, check=True, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeUnavailable(f"{shlex.join((*command, option))} failed ({error}): {_INSTALL}; {WAY_OUT}") from error
    return done.stdout.strip()


def _major(dumped: str) -> int:
    digits = dumped.split(".")[0]
    return int(digits) if digits.isdigit() else 0
