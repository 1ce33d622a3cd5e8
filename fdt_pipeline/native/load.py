"""The operators in this process: built if need be, loaded into DALI once, and given the path of NVRTC."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from importlib import import_module
from pathlib import Path

from fdt_pipeline.native import WAY_OUT, NativeUnavailable
from fdt_pipeline.native.build import BuildFailed, build
from fdt_pipeline.native.recipe import check_level, wheel_file

SWITCH = "FDT_PIPELINE_NATIVE"
# Wheels that have NVRTC, by its major version, the newest first.
_NVRTC_WHEELS = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}


class _Process:
    """What this process has loaded: DALI has one registry of operators in a process, which a fork inherits."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_loading = False
        self.outcome: Path | BuildFailed | None = None  # a build takes seconds: one that failed is not tried again

    def load(self) -> Path:
        check_level()
        with self.lock:
            if self.is_loading:  # DALI asks fn.fdt for an operator before it puts it there, which leads here
                raise AttributeError("the native operators are being loaded, and are not there yet")
            if self.outcome is None:
                require_usable()
                self.is_loading = True
                try:
                    path = build().path
                    _into_dali(path)
                    self.outcome = path
                except BuildFailed as failure:
                    self.outcome = failure
                finally:
                    self.is_loading = False
            if isinstance(self.outcome, BuildFailed):
                raise self.outcome
            return self.outcome


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


def require_usable() -> None:
    """NativeUnavailable where the engine is turned off ($FDT_PIPELINE_NATIVE is 0), or the processor is too old for it.

    ValueError where the variable is neither 0, 1 nor empty.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} must be 0 (off) or 1 (on, as without it), got {value!r}")
    if value == "0":
        raise NativeUnavailable(f'the native engine is turned off by {SWITCH}=0: unset it, or use engine="torch"')
    if platform.machine() == "x86_64" and "sse4_2" not in Path("/proc/cpuinfo").read_text():
        raise NativeUnavailable(f"the native engine needs a processor with SSE4.2 (x86-64-v2); {WAY_OUT}")


def _into_dali(path: Path) -> None:
    try:
        import_module("nvidia.dali.plugin_manager").load_library(str(path))
        nvrtc = nvrtc_path()
        if nvrtc is not None:  # without it an operator for a GPU raises an error that says so
            ctypes.CDLL(str(path)).fdt_set_nvrtc_path(ctypes.c_char_p(nvrtc.encode()))
    except (OSError, RuntimeError, AttributeError) as error:
        raise NativeUnavailable(
            f"the native operators could not be loaded ({error}); they are in {path}: "
            f"fdt-pipeline build --force compiles them again; {WAY_OUT}"
        ) from error


def driver_version() -> str | None:
    """The newest CUDA that the driver serves, such as "13.0"; None without a driver. Initialises nothing."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def nvrtc_path() -> str | None:
    """A wheel's NVRTC, found without loading it (100 MB, 0.1 s), else the system's where there is a driver.

    Its major version is not above the driver's, which might not take what a later NVRTC makes.
    """
    driver = driver_version()
    majors = [major for major in _NVRTC_WHEELS if driver is None or major <= int(driver.split(".")[0])]
    for major in majors:
        file = wheel_file(_NVRTC_WHEELS[major], f"libnvrtc.so.{major}")
        if file is not None:
            return str(file)
    return next((f"libnvrtc.so.{major}" for major in majors if driver and _loads(f"libnvrtc.so.{major}")), None)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
