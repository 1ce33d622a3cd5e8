"""The operators in this process: built if need be, loaded into DALI once."""

from __future__ import annotations

import ctypes
import os
import threading
from importlib import import_module
from pathlib import Path

from fdt_pipeline.native import processor
from fdt_pipeline.native.compiling import BuildFailed
from fdt_pipeline.native.driver import nvrtc_path
from fdt_pipeline.native.library import library_path
from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable, require_turned_on


class _Process:
    """What this process has loaded: DALI's registry of operators is one a process. A fork inherits it."""

    def __init__(self) -> None:
        self.loaded: Path | None = None
        self.failure: BuildFailed | None = None  # a build takes seconds: one that failed is not tried again here
        self.forget_threads()
        os.register_at_fork(after_in_child=self.forget_threads)

    def forget_threads(self) -> None:
        """A thread that loads is not in the child of a fork."""
        self.lock = threading.Lock()
        self.loader: int | None = None

    def load(self) -> Path:
        if self.loader == threading.get_ident():
            # DALI asks fn.fdt for an operator before it puts it there, and asking leads here (fn_module.py).
            raise AttributeError("the native operators are being loaded, and are not there yet")
        processor.level()  # raises where $FDT_PIPELINE_ISA is wrong
        with self.lock:
            if self.loaded is None:
                require_turned_on()
                self.loader = threading.get_ident()
                try:
                    path = self._built()
                    _into_dali(path)
                finally:
                    self.loader = None
                self.loaded = path
            return self.loaded

    def _built(self) -> Path:
        if self.failure is not None:
            raise self.failure
        try:
            return library_path()
        except BuildFailed as failure:
            self.failure = failure
            raise


_process = _Process()


def load() -> Path:
    """-> the library. After this fn.fdt.superpose and fn.fdt.superpose_resident exist. NativeUnavailable says why not;
    ValueError where an environment variable is none of its values.

    Built if need be, loaded into DALI once a process, whichever thread asks first.
    """
    return _process.load()


def symbols() -> ctypes.CDLL:
    """The C functions of the loaded operators (csrc/core_api.cc, csrc/gpu.cc)."""
    return ctypes.CDLL(str(load()))


def _into_dali(path: Path) -> None:
    try:
        import_module("nvidia.dali.plugin_manager").load_library(str(path))
        library = ctypes.CDLL(str(path))
        _tell_where_nvrtc_is(library)
    except (OSError, RuntimeError, AttributeError) as error:
        raise NativeUnavailable(
            f"the native operators could not be loaded ({error}); they are in {path}: "
            f"fdt-pipeline build --force makes them anew; {WAY_OUT}"
        ) from error


def _tell_where_nvrtc_is(library: ctypes.CDLL) -> None:
    """The library looks for no wheels itself. Without NVRTC it says so when an operator is made for a GPU."""
    path = nvrtc_path()
    if path is not None:
        library.fdt_set_nvrtc_path.argtypes = [ctypes.c_char_p]
        library.fdt_set_nvrtc_path.restype = None
        library.fdt_set_nvrtc_path(path.encode())
