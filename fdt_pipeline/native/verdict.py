"""Whether the native engine can be used here, and why not; nothing is built to find out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdt_pipeline.native import cache, processor
from fdt_pipeline.native.library import last_failure, look
from fdt_pipeline.native.recipe import Recipe, operator_recipe
from fdt_pipeline.native.unavailable import NativeUnavailable, require_turned_on


@dataclass(frozen=True)
class Availability:
    """`usable`, and the reason in words; `library` where it has been built already."""

    usable: bool
    reason: str
    library: Path | None = None

    def __bool__(self) -> bool:
        return self.usable


def availability() -> Availability:
    """As far as can be told without compiling; a last build that failed counts as a no."""
    try:
        require_turned_on()
        return _of(operator_recipe())
    except ImportError as obstacle:
        return Availability(False, str(obstacle))


def _of(recipe: Recipe) -> Availability:
    if processor.level() is None:
        return Availability(False, "the native engine needs a processor with SSE4.2 (x86-64-v2)")
    library = look(recipe)
    if library is not None:
        return Availability(True, "it has been built", library)
    if isinstance(recipe.toolchain, NativeUnavailable):
        return Availability(False, str(recipe.toolchain))
    for folder in cache.places():
        failure = last_failure(recipe, folder)
        if failure is not None:
            again = "fdt-pipeline build tries again"
            return Availability(False, f"the last build failed, {again}. {failure}")
    return Availability(True, "not built yet: that is done at first use, or by fdt-pipeline build")
