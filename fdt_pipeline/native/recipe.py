"""What is compiled and how: the sources in csrc, each with its flags, and the key that names the result.

Two products of the same sources: `operators` is what DALI loads; `core` is everything but operators.cc, and knows
nothing of DALI, for the tests.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fdt_pipeline import dali
from fdt_pipeline.native import processor
from fdt_pipeline.native.toolchain import Toolchain, find_toolchain
from fdt_pipeline.native.unavailable import NativeUnavailable

CSRC = Path(__file__).parent / "csrc"
KERNEL = "kernel.cc"  # compiled once for every level of the instruction set
OPERATORS = "operators.cc"  # the only one that sees DALI's and CUDA's headers

SUFFIXES = (".cc", ".h", ".cu")

# No -ffast-math: sums keep their order and the laws hold. Without errno a square root is one instruction.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", "-Wall", "-Wextra")
# With -z defs what is defined nowhere is an error now, and not at the first call.
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
    The toolchain's does not matter where there is none: what one layer of an image has built serves in another that
    has no compiler.
    """

    sources: Path
    what: Mapping[str, object]
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    link_paths: tuple[str, ...]
    toolchain: Toolchain | NativeUnavailable

    @property
    def what_key(self) -> str:
        return _hash(self.what)

    @property
    def toolchain_key(self) -> str | None:
        return None if isinstance(self.toolchain, NativeUnavailable) else _hash(self.toolchain.ingredients)

    @property
    def key(self) -> str:
        """Both halves."""
        return f"{self.what_key}-{self.toolchain_key}"

    @property
    def name(self) -> str:
        """How the names of this build's files begin."""
        return f"{self.what['product']}-{self.key}"

    def is_current(self) -> bool:
        """Whether the sources are still as they were when this was made."""
        return self.what["sources"] == _hashes(self.sources)

    @property
    def title(self) -> str:
        return f"operators for DALI {self.what['dali']}" if "dali" in self.what else "core without DALI"


def operator_recipe(sources: Path = CSRC) -> Recipe:
    """For the DALI that is installed; ImportError where none is."""
    dali.import_dali()
    sysconfig = import_module("nvidia.dali.sysconfig")
    toolchain = find_toolchain(with_headers=True)
    abi = tuple(flag for flag in sysconfig.get_compile_flags() if not flag.startswith("-I"))
    units = tuple(
        Unit(unit.name, unit.source, unit.flags, (*unit.paths, *_includes(sysconfig, toolchain)))
        if unit.source.name == OPERATORS
        else unit
        for unit in _units(sources, abi)
    )
    link = (*_LINK, "-ldali", "-ldali_core")  # no run path: they are in the process when this is loaded
    what = {
        "product": "operators",
        "dali": dali.version(),
        "wheel": dali.installed_wheels(),
        **_ingredients(sources, units, link),
    }
    return Recipe(sources, what, units, link, (f"-L{sysconfig.get_lib_dir()}",), toolchain)


def core_recipe(extra_flags: Sequence[str] = (), sources: Path = CSRC) -> Recipe:
    """Without DALI. `extra_flags`, such as -fsanitize=address -O1, come last, when compiling and when linking."""
    units = tuple(unit for unit in _units(sources, tuple(extra_flags)) if unit.source.name != OPERATORS)
    link = (*_LINK, *extra_flags)
    what = {"product": "core", **_ingredients(sources, units, link)}
    return Recipe(sources, what, units, link, (), find_toolchain(with_headers=False))


def _units(sources: Path, extra_flags: tuple[str, ...]) -> tuple[Unit, ...]:
    """The longest first, so that the last core is not left waiting for it."""
    files = sorted(sources.glob("*.cc"), key=lambda file: (file.name != OPERATORS, file.name != KERNEL, file.name))
    paths = (f"-ffile-prefix-map={sources}=csrc", f"-I{sources}")
    return tuple(
        Unit(name, file, (*COMMON_FLAGS, *flags, *extra_flags), paths) for file in files for name, flags in _runs(file)
    )


def _runs(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(name of the object, flags) of every run of the compiler on a file."""
    if file.name == OPERATORS:  # it hands batches over; with -O3 its compilation takes 8 s instead of 5
        return [(file.stem, (*processor.baseline(), "-O1"))]
    if file.name != KERNEL:
        return [(file.stem, processor.baseline())]
    return [(f"kernel.{level}", (*flags, f"-DFDT_ISA={level}")) for level, flags in processor.levels().items()]


def _includes(sysconfig: ModuleType, toolchain: Toolchain | NativeUnavailable) -> tuple[str, ...]:
    """As system folders: the warnings of others are not ours to see."""
    headers = () if isinstance(toolchain, NativeUnavailable) else toolchain.headers
    folders = (sysconfig.get_include_dir(), *map(str, headers))
    return tuple(word for folder in folders for word in ("-isystem", folder))


def _ingredients(sources: Path, units: tuple[Unit, ...], link: tuple[str, ...]) -> dict[str, object]:
    return {
        "machine": platform.machine(),
        "flags": {unit.name: unit.flags for unit in units},
        "link": link,
        "sources": _hashes(sources),
    }


def _hashes(sources: Path) -> dict[str, str]:
    files = sorted(file for file in sources.iterdir() if file.suffix in SUFFIXES)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _hash(ingredients: Mapping[str, object]) -> str:
    """16 hexadecimal digits: among a billion keys two are the same with a chance of 0.03."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
