"""The operators in this process: built if need be, loaded into DALI once."""

from __future__ import annotations

import ctypes
import os
import threading
from importlib import import_module
from pathlib import Path

from fdt_pipeline.native import WAY_OUT, NativeUnavailable, processor, require_turned_on
from fdt_pipeline.native.build import BuildFailed, build
from fdt_pipeline.native.driver import nvrtc_path


class _Process:
    """What this process has loaded. DALI has one registry of operators in a process, which a fork inherits."""

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
            return build().path
        except BuildFailed as failure:
            self.failure = failure
            raise


_process = _Process()


def load() -> Path:
    """Build the operators if need be, load them into DALI once, and return their library.

    Then fn.fdt.superpose and fn.fdt.superpose_resident exist. NativeUnavailable says why they cannot be had; ValueError
    names an environment variable that has a wrong value.
    """
    return _process.load()


def symbols() -> ctypes.CDLL:
    """The C functions of the loaded operators (csrc/pool_api.cc)."""
    return ctypes.CDLL(str(load()))


def _into_dali(path: Path) -> None:
    try:
        import_module("nvidia.dali.plugin_manager").load_library(str(path))
        set_nvrtc_path(ctypes.CDLL(str(path)), nvrtc_path())
    except (OSError, RuntimeError, AttributeError) as error:
        raise NativeUnavailable(
            f"the native operators could not be loaded ({error}); they are in {path}: "
            f"fdt-pipeline build --force compiles them again; {WAY_OUT}"
        ) from error


def set_nvrtc_path(library: ctypes.CDLL, path: str | None) -> None:
    """The library looks for no wheels itself. Without NVRTC an operator for a GPU raises an error that says so."""
    if path is not None:
        library.fdt_set_nvrtc_path(ctypes.c_char_p(path.encode()))
