"""The native engine: DALI operators in C++ and CUDA, compiled for the installed DALI when they are first needed.

Order of reading: `recipe` (what is compiled, and by what), `build` (from a recipe to a library in the cache), `load`
(the library in this process), `pool` (images for the operators to draw from).
Importing any of them builds, loads and looks for nothing.
"""

from __future__ import annotations

import os

SWITCH = "FDT_PIPELINE_NATIVE"
WAY_OUT = 'on a CPU engine="torch" runs without it; fdt-pipeline doctor says what is found here'


class NativeUnavailable(ImportError):  # noqa: N818 (it need not be an error: there is another engine)
    """The native engine cannot be used here; the message says why, and what to do."""


def require_turned_on() -> None:
    """NativeUnavailable where $FDT_PIPELINE_NATIVE is 0; ValueError where it is neither 0, 1 nor empty."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} must be 0 (off) or 1 (on, as without it), got {value!r}")
    if value == "0":
        raise NativeUnavailable(f'the native engine is turned off by {SWITCH}=0: unset it, or use engine="torch"')
