"""The levels of the instruction set that kernel.cc is compiled for, and the one that this machine will use."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

VARIABLE = "FDT_PIPELINE_ISA"

# Name (-DFDT_ISA) and flags. GCC prefers 256-bit vectors for v4 by itself.
LEVELS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "v2": ("-march=x86-64-v2",),
        "v3": ("-march=x86-64-v3",),
        "v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    }
}
GENERIC: Mapping[str, tuple[str, ...]] = {"generic": ()}

# The same conditions as in csrc/dispatch.cc, in the words of /proc/cpuinfo.
_NEEDS = {
    "v2": {"sse4_2", "ssse3", "popcnt"},
    "v3": {"avx2", "fma", "bmi2"},
    "v4": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"},
}


def levels() -> Mapping[str, tuple[str, ...]]:
    """Flags by level, the lowest first, for this machine's architecture."""
    return LEVELS.get(platform.machine(), GENERIC)


def baseline() -> tuple[str, ...]:
    """The flags of everything but the kernel."""
    return next(iter(levels().values()))


def level() -> str | None:
    """The level that the operator will take here ($FDT_PIPELINE_ISA, else the highest); None below x86-64-v2.

    ValueError where the variable names none that this processor has."""
    found = found_levels(_cpu_flags()) if platform.machine() in LEVELS else list(GENERIC)
    asked = os.environ.get(VARIABLE)
    if asked and found and asked not in found:
        raise ValueError(
            f"{VARIABLE} must be one of {', '.join(found)} (what this processor has), got {asked!r}: "
            "unset it for the best"
        )
    return asked or (found[-1] if found else None)


def found_levels(flags: frozenset[str]) -> list[str]:
    """The levels that a processor with these flags has in full, the highest last."""
    return list(takewhile(lambda name: _NEEDS[name] <= flags, _NEEDS))


@lru_cache
def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
