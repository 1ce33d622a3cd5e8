"""Images in memory that `fn.fdt.superpose_resident` draws from. `csrc/pool_api.cc` is the other side.

pool = NativePool.begin(n=50_000, shape=(32, 32, 3), pad=4)
pool.set_images(0, images)              # u8[m h w c], in any order, by any threads
pool.finish(Pool(labels, num_classes))
fn.fdt.superpose_resident(ids, pool=pool.name, ...)
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.superposition import Pool as LabelledPool
from fdt_pipeline.native.load import symbols

U8 = npt.NDArray[np.uint8]
HOST = -1  # in the place of a GPU's number

_POINTER, _I64, _I32, _TEXT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fdt_error": (_TEXT, []),
    "fdt_prepare_gpu": (_I64, [_I32] * 3),
    "fdt_pool_create": (_POINTER, [*[_I64] * 5, _I32]),
    "fdt_pool_set": (_I64, [_POINTER, _I64, _I64, _POINTER]),
    "fdt_pool_finish": (_I64, [_POINTER, _POINTER, ctypes.c_uint32, _TEXT]),
    "fdt_pool_release": (_I64, [_POINTER, _TEXT]),
}


_named: WeakValueDictionary[str, NativePool] = WeakValueDictionary()


def num_classes_of(name: str | None) -> int | None:
    """How many classes the pool of this name has; None where this process has no such pool."""
    pool = _named.get(name or "")
    return pool.labels.num_classes if pool is not None and pool.labels is not None else None


class NativePool:
    """u8[n h w c] images in huge pages of the host or in a GPU's memory, and nowhere else.

    `name` is what operators of the same process and device find it by, from `finish` on. `close` frees the memory, as
    does dropping this object; operators that use the pool keep the memory until they end.
    """

    def __init__(self, library: ctypes.CDLL, handle: int, shape: tuple[int, int, int, int], pad: int) -> None:
        self.library, self.handle, self.shape, self.pad = library, handle, shape, pad
        self.name: str | None = None
        self.labels: LabelledPool | None = None

    @classmethod
    def begin(
        cls, n: int, shape: Sequence[int], pad: int, device: int = HOST, library: ctypes.CDLL | None = None
    ) -> NativePool:
        """Room for n images of shape (h, w, c), which operators may shift by up to `pad` pixels.

        device: the number of a GPU, or HOST. library: the loaded operators', or another one with the same C functions.
        ValueError, with the library's message, where there is no room.
        """
        library = _typed(symbols() if library is None else library)
        h, w, c = shape
        handle = checked(library, library.fdt_pool_create(n, h, w, c, pad, device))
        return cls(library, handle, (n, h, w, c), pad)

    def set_images(self, first: int, images: U8) -> None:
        """u8[m h w c] become images first .. first + m - 1. Several threads may set different images at once."""
        fits = images.shape[1:] == self.shape[1:] and 0 <= first <= self.shape[0] - len(images)
        if not fits or images.dtype != np.uint8:
            raise ValueError(
                f"expected u8[m h w c] of {self.shape}, got {images.dtype} {images.shape} for image {first} and on"
            )
        images = np.ascontiguousarray(images)
        checked(self.library, self.library.fdt_pool_set(self.handle, first, len(images), images.ctypes.data) == 0)

    def finish(self, labels: LabelledPool, name: str | None = None) -> NativePool:
        """Give every image its label, and the pool its name: this one, or one that no other pool has anywhere."""
        if len(labels) != self.shape[0]:
            raise ValueError(f"expected a label for each of {self.shape[0]} images, got {len(labels)}")
        name = name or f"pool {secrets.token_hex(8)}"
        numbers = np.ascontiguousarray(labels.labels)
        done = self.library.fdt_pool_finish(self.handle, numbers.ctypes.data, labels.num_classes, name.encode())
        checked(self.library, done == 0)
        self.name, self.labels = name, labels
        _named[name] = self
        return self

    def close(self) -> None:
        if self.handle:
            self.library.fdt_pool_release(self.handle, self.name.encode() if self.name else None)
            self.handle = 0

    def __del__(self) -> None:
        self.close()


def prepare_gpu(device: int, stored: int, channels: int, library: ctypes.CDLL | None = None) -> None:
    """Compile the kernels for images of `stored` channels and outputs of `channels` for this GPU, and load them.

    ValueError, with the library's message, where NVRTC or the driver is missing, or does not know the GPU.
    """
    library = _typed(symbols() if library is None else library)
    checked(library, library.fdt_prepare_gpu(device, stored, channels) == 0)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def checked(library: ctypes.CDLL, result: Any) -> Any:
    """The result, or where it is empty a ValueError with the library's message."""
    if not result:
        raise ValueError(library.fdt_error().decode(errors="replace"))
    return result
