"""The GPU as the driver tells of it, and NVRTC, which compiles the kernel for it; both through ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from fdt_pipeline.native.headers import nvidia_folders

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
# Below `nvidia` and in the system, the newest first.
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
    """Initialises the driver in this process (which must then not fork to use it): for a report, not for a loader."""
    library = cuda_library()
    if library is None:
        return Driver(None, problem="no NVIDIA driver: libcuda.so.1 is not here")
    version = version_of(library)
    code = library.cuInit(0)
    count = ctypes.c_int(0)
    if code == 0:
        code = library.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return Driver(version, problem=f"the driver says {_error(library, code)}")
    gpus = tuple(_gpu(library, ordinal) for ordinal in range(count.value))
    return Driver(version, gpus, None if gpus else "the driver sees no GPU")


def nvrtc_path() -> str | None:
    """Where NVRTC is: of a wheel without loading it (100 MB, 0.1 s), else of the system where there is a driver."""
    majors = _majors()
    files = [folder / _NVRTC[major][0] for major in majors for folder in nvidia_folders()]
    found = next((str(file) for file in files if file.is_file()), None)
    if found is not None or cuda_library() is None:
        return found
    return next((name for name in (_NVRTC[major][1] for major in majors) if _load(name)), None)


def find_nvrtc() -> Nvrtc | None:
    """The same with its version; it is loaded for that."""
    path = nvrtc_path()
    library = _load(path) if path else None
    if path is None or library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(path, f"{major.value}.{minor.value}")


def _majors() -> list[int]:
    """None of a later major version than the driver: what that makes, the driver may not take."""
    cuda = cuda_library()
    newest = version_of(cuda) if cuda is not None else None
    return [major for major in _NVRTC if newest is None or major <= int(newest.split(".")[0])]


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def cuda_library() -> ctypes.CDLL | None:
    return _load("libcuda.so.1")


def version_of(cuda: ctypes.CDLL) -> str | None:
    """Works without cuInit."""
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _gpu(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    return Gpu(
        name.value.decode(errors="replace"), f"{_attribute(cuda, device, _MAJOR)}.{_attribute(cuda, device, _MINOR)}"
    )


def _attribute(cuda: ctypes.CDLL, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _error(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'an unknown error').decode()} ({code})"
