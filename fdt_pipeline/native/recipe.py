"""What is compiled and how: the sources in csrc, each with its flags, and the key that names the result."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fdt_pipeline import dali
from fdt_pipeline.native import NativeUnavailable, processor
from fdt_pipeline.native.toolchain import Toolchain, find_toolchain

CSRC = Path(__file__).parent / "csrc"
OPERATORS = "operators.cc"  # the only source that includes DALI's and CUDA's headers
KERNEL = "kernel.cc"  # sources whose names end like this are compiled once for each level of the instruction set

# No -ffast-math: sums keep their order and the laws hold. Without errno a square root is one instruction.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", "-Wall", "-Wextra")
# With -z defs an undefined symbol is an error of the link, and not of the first call.
_LINK = ("-shared", "-pthread", "-ldl", "-Wl,-z,defs")


@dataclass(frozen=True)
class Unit:
    """One run of the compiler. `flags` are part of the key; `paths` are not, as an environment may move."""

    name: str
    source: Path
    flags: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """All that a build needs, and its name.

    A key has two halves. `what` (product, DALI, sources, flags, machine) must be the same for a library to be of use.
    The toolchain's half does not matter where there is no toolchain: a library that one layer of a Docker image has
    built is used in a later layer that has no compiler.
    """

    title: str
    sources: tuple[Path, ...]  # headers as well
    what: Mapping[str, object]
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    link_paths: tuple[str, ...]
    toolchain: Toolchain | NativeUnavailable

    @property
    def key(self) -> str:
        """Both halves, with "*" for a toolchain that is not here."""
        toolchain = "*" if isinstance(self.toolchain, NativeUnavailable) else _hash(self.toolchain.ingredients)
        return f"{_hash(self.what)}-{toolchain}"

    @property
    def name(self) -> str:
        """How the names of this build's files begin."""
        return f"{self.what['product']}-{self.key}"

    def is_current(self) -> bool:
        """Whether the sources are still as they were when this was made."""
        return self.what["sources"] == _hashes(self.sources)


def operator_recipe(csrc: Path = CSRC) -> Recipe:
    """The operators for the DALI that is installed; ImportError where there is none."""
    dali.import_dali()
    sysconfig = import_module("nvidia.dali.sysconfig")
    toolchain = find_toolchain(with_headers=True)
    headers = () if isinstance(toolchain, NativeUnavailable) else toolchain.headers.folders
    # As system folders, so that their warnings are not shown.
    paths = tuple(word for folder in (sysconfig.get_include_dir(), *map(str, headers)) for word in ("-isystem", folder))
    abi = tuple(flag for flag in sysconfig.get_compile_flags() if not flag.startswith("-I"))
    sources = _sources(csrc)
    units = _units(csrc, sources, abi, paths)
    link = (*_LINK, "-ldali", "-ldali_core")  # no run path: they are in the process when this is loaded
    what = {
        "product": "operators",
        "dali": dali.version(),
        "wheel": dali.installed_wheels(),
        **_ingredients(sources, units, link),
    }
    title = f"operators for DALI {dali.version()}"
    return Recipe(title, sources, what, units, link, (f"-L{sysconfig.get_lib_dir()}",), toolchain)


def core_recipe(extra_sources: Sequence[Path] = (), extra_flags: Sequence[str] = (), csrc: Path = CSRC) -> Recipe:
    """The same sources without DALI, and more of the caller's own. `extra_flags`, such as -fsanitize=address -O1, come
    last, when compiling and when linking."""
    sources = (*(file for file in _sources(csrc) if file.name != OPERATORS), *extra_sources)
    units = _units(csrc, sources, tuple(extra_flags), ())
    link = (*_LINK, *extra_flags)
    what = {"product": "core", **_ingredients(sources, units, link)}
    return Recipe("core without DALI", sources, what, units, link, (), find_toolchain(with_headers=False))


def _sources(csrc: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in csrc.iterdir() if file.suffix in (".cc", ".h", ".cu")))


def _units(
    csrc: Path, sources: Sequence[Path], extra_flags: tuple[str, ...], operator_paths: tuple[str, ...]
) -> tuple[Unit, ...]:
    """The longest first, so that the last core is not left waiting for it."""
    files = [file for file in sources if file.suffix == ".cc"]
    files.sort(key=lambda file: (file.name != OPERATORS, not file.name.endswith(KERNEL)))
    paths = (f"-ffile-prefix-map={csrc}=csrc", f"-I{csrc}")
    return tuple(
        Unit(
            name,
            file,
            (*COMMON_FLAGS, *flags, *extra_flags),
            (*paths, *(operator_paths if file.name == OPERATORS else ())),
        )
        for file in files
        for name, flags in _runs(file)
    )


def _runs(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(name of the object, flags) of every run of the compiler on a file."""
    if file.name.endswith(KERNEL):
        return [(f"{file.stem}.{level}", (*flags, f"-DFDT_ISA={level}")) for level, flags in processor.levels().items()]
    # operators.cc hands batches over; with -O3 its compilation takes 8 s instead of 5.
    return [(file.stem, (*processor.baseline(), *(("-O1",) if file.name == OPERATORS else ())))]


def _ingredients(sources: tuple[Path, ...], units: tuple[Unit, ...], link: tuple[str, ...]) -> dict[str, object]:
    return {
        "machine": platform.machine(),
        "flags": {unit.name: unit.flags for unit in units},
        "link": link,
        "sources": _hashes(sources),
    }


def _hashes(sources: tuple[Path, ...]) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sources}


def _hash(ingredients: Mapping[str, object]) -> str:
    """16 hexadecimal digits: among a billion keys two are the same with a chance of 0.03."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
