"""The native engine: DALI operators in C++ and CUDA, compiled for the installed DALI when they are first needed.

Order of reading: `recipe` (what is compiled, and by what), `build` (from a recipe to a library in the cache), `load`
(the library in this process), `pool` (images for the operators to draw from).
Importing any of them builds, loads and looks for nothing.
"""

from __future__ import annotations

WAY_OUT = 'on a CPU engine="torch" runs without it; fdt-pipeline doctor says what is found here'


class NativeUnavailable(ImportError):  # noqa: N818 (it need not be an error: there is another engine)
    """The native engine cannot be used here; the message says why, and what to do."""
