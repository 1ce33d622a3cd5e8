"""The native engine: DALI operators in C++ and CUDA, compiled for the installed DALI when they are first needed.

    from fdt_pipeline import native

    native.load()  # from here on nvidia.dali.fn.fdt.superpose and fn.fdt.superpose_resident exist

Order of reading: `recipe` (what is compiled, and how), `library` (from a recipe to a file in the cache), `loading`.
Nothing is built, loaded or looked for when this is imported, and what looks and builds is imported when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdt_pipeline.native.library import Library, build, build_core, library_path
    from fdt_pipeline.native.loading import load, symbols
    from fdt_pipeline.native.unavailable import NativeUnavailable
    from fdt_pipeline.native.verdict import Availability, availability

__all__ = [
    "Availability",
    "Library",
    "NativeUnavailable",
    "availability",
    "build",
    "build_core",
    "library_path",
    "load",
    "symbols",
]

_HOMES = {
    "library": ("Library", "build", "build_core", "library_path"),
    "loading": ("load", "symbols"),
    "unavailable": ("NativeUnavailable",),
    "verdict": ("Availability", "availability"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"fdt_pipeline.native.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
