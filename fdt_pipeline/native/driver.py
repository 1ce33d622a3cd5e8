"""The GPU, as torch sees it, and NVRTC, which compiles the kernel for it."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass

from fdt_pipeline.native.toolchain import nvidia_folders

# By major version, the newest first: below `nvidia`, and in the system.
_NVRTC = {
    13: ("cu13/lib/libnvrtc.so.13", "libnvrtc.so.13"),
    12: ("cuda_nvrtc/lib/libnvrtc.so.12", "libnvrtc.so.12"),
}


@dataclass(frozen=True)
class Gpu:
    """`capability` such as "9.0"."""

    name: str
    capability: str


@dataclass(frozen=True)
class Driver:
    """`cuda` is the newest version of CUDA that the driver serves, such as "13.0"; `problem` why there is no GPU."""

    cuda: str | None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Nvrtc:
    """A path, or a name that the system's linker knows."""

    path: str
    version: str


def find_driver() -> Driver:
    """Initialises CUDA in this process (which must then not fork to use it): for a report, not for a loader."""
    version = driver_version()
    if version is None:
        return Driver(None, problem="no NVIDIA driver: libcuda.so.1 is not here")
    import torch  # here, as it takes a second that loading the operators does not need

    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that does not start
        warnings.simplefilter("always")
        gpus = tuple(
            Gpu(torch.cuda.get_device_name(i), "{}.{}".format(*torch.cuda.get_device_capability(i)))
            for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        )
    reasons = "; ".join(str(warning.message) for warning in said) or f"torch {torch.__version__} sees no GPU"
    return Driver(version, gpus, None if gpus else reasons)


def driver_version() -> str | None:
    """The newest CUDA that the driver serves, such as "13.0"; None without a driver. Initialises nothing."""
    library, number = _load("libcuda.so.1"), ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def nvrtc_path() -> str | None:
    """A wheel's NVRTC, found without loading it (100 MB, 0.1 s), else the system's where there is a driver.

    Its major version is not above the driver's, which might not take what a later NVRTC makes.
    """
    driver = driver_version()
    names = [_NVRTC[major] for major in _NVRTC if driver is None or major <= int(driver.split(".")[0])]
    files = [folder / name for name, _ in names for folder in nvidia_folders()]
    found = next((str(file) for file in files if file.is_file()), None)
    if found is not None or driver is None:
        return found
    return next((name for _, name in names if _load(name)), None)


def find_nvrtc() -> Nvrtc | None:
    """NVRTC with its version; it is loaded for that."""
    path = nvrtc_path()
    library = _load(path) if path else None
    if path is None or library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(path, f"{major.value}.{minor.value}")


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
