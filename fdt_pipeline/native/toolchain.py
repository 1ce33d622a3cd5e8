"""What compiles the operators: a C++ compiler, and CUDA's headers, which DALI's own headers include even for the CPU.

The headers come from wheels, which the extras bring; a CUDA toolkit is neither needed nor looked for. DALI 1.34 (for
CUDA 11) and 2.4 compile with CUDA 13's headers alike, in any mixture of 13.0 and 13.5.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from fdt_pipeline.native import WAY_OUT, NativeUnavailable

_CANDIDATES = ("g++", "c++", "clang++")
_OLDEST = {"gcc": 11, "clang": 12}  # the first to know -march=x86-64-v2 and above
_INSTALL = "apt-get install g++ (or dnf install gcc-c++, or conda install -c conda-forge gxx)"


class Wheel(NamedTuple):
    """A wheel, a header that only this wheel has, and the folders below `nvidia` where the header may be."""

    name: str
    header: str
    folders: tuple[str, ...]


HEADER_WHEELS = (
    Wheel("nvidia-cuda-runtime", "cuda_runtime.h", ("cu13/include",)),
    Wheel("nvidia-cuda-crt", "crt/host_config.h", ("cu13/include",)),
    Wheel("nvidia-cuda-cccl", "nv/target", ("cu13/include", "cu13/include/cccl")),
)


@dataclass(frozen=True)
class Compiler:
    """A command, such as ("ccache", "/usr/bin/g++"), and all that its --version prints."""

    command: tuple[str, ...]
    version: str

    @property
    def title(self) -> str:
        return self.version.splitlines()[0] if self.version else "unknown version"


@dataclass(frozen=True)
class Headers:
    """Folders to include, and their version of CUDA, such as "13.0"."""

    folders: tuple[Path, ...] = ()
    version: str = ""


@dataclass(frozen=True)
class Toolchain:
    """A compiler, and CUDA's headers where they are needed. `ingredients` is its half of a library's key."""

    compiler: Compiler
    headers: Headers

    @property
    def ingredients(self) -> Mapping[str, str]:
        libc = " ".join(platform.libc_ver())
        return {"compiler": self.compiler.version, "cuda_headers": self.headers.version, "libc": libc}


def find_toolchain(with_headers: bool) -> Toolchain | NativeUnavailable:
    """An obstacle is returned, not raised: it does not matter where the library has been built before."""
    try:
        return Toolchain(find_compiler(), find_headers() if with_headers else Headers())
    except NativeUnavailable as obstacle:
        return obstacle


def find_compiler() -> Compiler:
    """$CXX where it is set, else g++, c++ or clang++. NativeUnavailable where there is none, or it is too old."""
    command = _command()
    compiler = Compiler(command, _output(command, "--version"))
    major = _output(command, "-dumpversion").split(".")[0]
    if not major.isdigit() or int(major) < _OLDEST["clang" if "clang" in compiler.version else "gcc"]:
        raise NativeUnavailable(
            f"{shlex.join(command)} is {compiler.title}, but the native engine needs g++ 11 or clang 12, or newer: "
            f"install one and choose it with CXX=g++-12, say; {WAY_OUT}"
        )
    return compiler


def _command() -> tuple[str, ...]:
    asked = shlex.split(os.environ.get("CXX", ""))
    program = next(filter(None, map(shutil.which, asked[:1] or _CANDIDATES)), None)
    if program is not None:
        return program, *asked[1:]
    if asked:
        raise NativeUnavailable(f"CXX={os.environ['CXX']} is not a program that can be run: unset CXX or {_INSTALL}")
    raise NativeUnavailable(
        f"no C++ compiler ({', '.join(_CANDIDATES)} or $CXX) was found, and the native engine is compiled at first "
        f"use: {_INSTALL}; {WAY_OUT}"
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


def find_headers() -> Headers:
    """NativeUnavailable, with the wheels to install, where they are not complete."""
    roots = nvidia_folders()
    places = {wheel: _folder(wheel, roots) for wheel in HEADER_WHEELS}
    found = tuple(dict.fromkeys(place for place in places.values() if place))
    missing = [wheel for wheel, place in places.items() if place is None]
    if not missing:
        return Headers(found, _cuda_version(found[0]))
    headers = ", ".join(wheel.header for wheel in missing)
    install = " ".join(f'"{wheel.name}>=13.0,<14"' for wheel in missing)
    raise NativeUnavailable(
        f"CUDA's headers, which DALI's own need, are incomplete (no {headers}): pip install {install}; {WAY_OUT}"
    )


def nvidia_folders() -> list[Path]:
    """The folders of the package `nvidia`, which may be split: the package's own, and those of the header wheels."""
    spec = util.find_spec("nvidia")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    for wheel in HEADER_WHEELS:
        try:
            places.append(Path(str(metadata.distribution(wheel.name).locate_file("nvidia"))))
        except metadata.PackageNotFoundError:
            continue
    return list(dict.fromkeys(places))


def _folder(wheel: Wheel, roots: list[Path]) -> Path | None:
    places = (root / folder for root in roots for folder in wheel.folders)
    return next((place for place in places if (place / wheel.header).is_file()), None)


def _cuda_version(folder: Path) -> str:
    """ "13.0", from `#define CUDART_VERSION 13000`."""
    text = (folder / "cuda_runtime_api.h").read_text(errors="replace")
    found = re.search(r"^#define\s+CUDART_VERSION\s+(\d+)", text, re.MULTILINE)
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else "unknown"
