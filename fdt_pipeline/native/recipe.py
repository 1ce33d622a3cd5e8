"""What is compiled: the sources in csrc, each with its flags; and what compiles them: a compiler and CUDA's headers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from fdt_pipeline import dali
from fdt_pipeline.native import WAY_OUT, NativeUnavailable

CSRC = Path(__file__).parent / "csrc"
OPERATORS = "operators.cc"  # the only source that includes DALI's and CUDA's headers
KERNEL = "kernel.cc"  # sources whose names end like this are compiled once for each level of the instruction set

# Levels of the instruction set, the lowest first: what csrc/dispatch.cc chooses from, and what $FDT_PIPELINE_ISA names.
# Everything but the kernel has the first one's flags. GCC prefers 256-bit vectors for v4 by itself.
LEVELS: Mapping[str, tuple[str, ...]] = {"generic": ()}
if platform.machine() == "x86_64":
    LEVELS = {
        "v2": ("-march=x86-64-v2",),
        "v3": ("-march=x86-64-v3",),
        "v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    }
ISA = "FDT_PIPELINE_ISA"

# No -ffast-math: sums keep their order and the laws hold. Without errno a square root is one instruction.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", "-Wall", "-Wextra")
# With -z defs an undefined symbol is an error of the link, and not of the first call.
_LINK = ("-shared", "-pthread", "-ldl", "-Wl,-z,defs")

_COMPILERS = ("g++", "c++", "clang++")
_INSTALL = "apt-get install g++ (or dnf install gcc-c++, or conda install -c conda-forge gxx)"
# Wheels, which the extras bring, and a header of each. DALI's headers include CUDA's even for the CPU. DALI 1.34 (for
# CUDA 11) and 2.4 compile with CUDA 13's alike, in any mixture of 13.0 and 13.5.
HEADER_WHEELS = {
    "nvidia-cuda-runtime": "cuda_runtime.h",
    "nvidia-cuda-crt": "crt/host_config.h",
    "nvidia-cuda-cccl": "nv/target",
}


@dataclass(frozen=True)
class Recipe:
    """What a library is made of: `sources` of one folder or more, flags for them and for the link beside our own, and
    the version and wheels of DALI, where its headers and libraries are needed."""

    product: str
    csrc: Path
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    dali: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Product and key, with which the name of the library's file begins.

        The key does not depend on the compiler: any that can build the library gives one of use. It has 16 hexadecimal
        digits: among a billion keys two are the same with a chance of 0.03.
        """
        ingredients = {
            "sources": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.sources},
            "flags": {name: flags for name, _, flags in self.runs()},
            "link": [*_LINK, *self.link_flags],
            "dali": self.dali,
            "machine": [platform.machine(), *platform.libc_ver()],
        }
        key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.product}-{key}"

    def runs(self) -> list[tuple[str, Path, tuple[str, ...]]]:
        """(name of the object without .o, source, flags) of every run of the compiler, the longest first, so that the
        last core is not left waiting for it."""
        files = [file for file in self.sources if file.suffix == ".cc"]
        files.sort(key=lambda file: (file.name != OPERATORS, not file.name.endswith(KERNEL)))
        return [(name, file, (*COMMON_FLAGS, *flags, *self.flags)) for file in files for name, flags in _variants(file)]

    def commands(self) -> list[list[str]]:
        """Every run of the compiler and then the link, in the current folder; it gives library.so.

        NativeUnavailable where a compiler or a header is missing.
        """
        compiler = find_compiler()
        paths, link_paths = [f"-ffile-prefix-map={self.csrc}=csrc", f"-I{self.csrc}"], []
        if self.dali:
            sysconfig = import_module("nvidia.dali.sysconfig")
            for folder in (sysconfig.get_include_dir(), *map(str, find_headers())):
                paths += ["-isystem", folder]  # a system folder's warnings are not shown
            link_paths = [f"-L{sysconfig.get_lib_dir()}"]
        runs = [[*compiler, *flags, *paths, "-c", str(file), "-o", f"{name}.o"] for name, file, flags in self.runs()]
        objects = [words[-1] for words in runs]
        return [*runs, [*compiler, *objects, *link_paths, *_LINK, *self.link_flags, "-o", "library.so"]]


def operator_recipe(csrc: Path = CSRC) -> Recipe:
    """The operators for the DALI that is installed; ImportError where there is none."""
    versions = (dali.version(), *dali.installed_wheels())
    flags = import_module("nvidia.dali.sysconfig").get_compile_flags()
    own_flags = tuple(flag for flag in flags if not flag.startswith("-I"))
    # Linked without a run path: the libraries are in the process when this one is loaded.
    return Recipe("operators", csrc, _sources(csrc), own_flags, ("-ldali", "-ldali_core"), versions)


def core_recipe(extra_sources: Sequence[Path] = (), extra_flags: Sequence[str] = (), csrc: Path = CSRC) -> Recipe:
    """The same sources without DALI, and more of the caller's own. `extra_flags`, such as -fsanitize=address -O1, come
    last, when compiling and when linking."""
    sources = (*(file for file in _sources(csrc) if file.name != OPERATORS), *extra_sources)
    return Recipe("core", csrc, sources, tuple(extra_flags), tuple(extra_flags))


def _sources(csrc: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in csrc.iterdir() if file.suffix in (".cc", ".h", ".cu")))


def _variants(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(name of the object, flags of its own) of every run of the compiler on a file."""
    if file.name.endswith(KERNEL):
        return [(f"{file.stem}.{level}", (*flags, f"-DFDT_ISA={level}")) for level, flags in LEVELS.items()]
    # operators.cc hands batches over; with -O3 its compilation takes 8 s instead of 5.
    return [(file.stem, (*next(iter(LEVELS.values())), *(("-O1",) if file.name == OPERATORS else ())))]


def check_level() -> None:
    """ValueError where $FDT_PIPELINE_ISA names no level; the operators refuse one that the processor lacks."""
    asked = os.environ.get(ISA)
    if asked and asked not in LEVELS:
        raise ValueError(f"{ISA} must be one of {', '.join(LEVELS)}, got {asked!r}: unset it for the best")


def find_compiler() -> list[str]:
    """The command of $CXX where it is set, else of g++, c++ or clang++. NativeUnavailable where none will do."""
    asked = shlex.split(os.environ.get("CXX", ""))
    program = next(filter(None, map(shutil.which, asked[:1] or _COMPILERS)), None)
    if program is None:
        missing = f"CXX={shlex.join(asked)} is not a program that can be run" if asked else "no C++ compiler was found"
        raise NativeUnavailable(f"{missing}, and the first use of the native engine needs one: {_INSTALL}; {WAY_OUT}")
    command = [os.path.abspath(program), *asked[1:]]
    newest = list(LEVELS.values())[-1]  # the flags that an old compiler does not know
    trial = [*command, *COMMON_FLAGS, *newest, "-fsyntax-only", "-x", "c++", os.devnull]
    done = subprocess.run(trial, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NativeUnavailable(
            f"the native engine needs g++ 11 or clang 12, or newer, and {shlex.join(command)} does not work as one "
            f"({done.stderr.strip()}): install one and choose it with CXX=g++-12, say; {WAY_OUT}"
        )
    return command


def find_headers() -> list[Path]:
    """The folders of CUDA's headers. NativeUnavailable, with the wheels to install, where they are not complete."""
    found = {wheel: wheel_file(wheel, header) for wheel, header in HEADER_WHEELS.items()}
    missing = [wheel for wheel, file in found.items() if file is None]
    if missing:
        headers = ", ".join(HEADER_WHEELS[wheel] for wheel in missing)
        install = " ".join(f'"{wheel}>=13.0,<14"' for wheel in missing)
        raise NativeUnavailable(
            f"CUDA's headers, which DALI's own need, are incomplete (no {headers}): pip install {install}; {WAY_OUT}"
        )
    folders = [file.parents[HEADER_WHEELS[wheel].count("/")] for wheel, file in found.items() if file is not None]
    return list(dict.fromkeys(folders))


def wheel_file(wheel: str, name: str) -> Path | None:
    """The file of an installed wheel whose path ends in `name`; None where it is not there."""
    try:
        listed = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        return None
    files = (Path(str(file.locate())) for file in listed if str(file).endswith(f"/{name}"))
    return next((file for file in files if file.is_file()), None)
