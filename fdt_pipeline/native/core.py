"""The native library's C functions: pools in memory, and plans and sums on the CPU without DALI.

`csrc/core_api.cc` is the other side. A `Core` is made of any library that has these functions: the operators', which
`load` returns, or one built without DALI for tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.plans import Plans, batch_weights
from fdt_pipeline.definition.superposition import FDT, I64, NO_AUGMENT, Augment, image_range
from fdt_pipeline.definition.superposition import Pool as LabelledPool

from .series import series_argument

U8 = npt.NDArray[np.uint8]
TARGETS = {"soft": 0, "dominant": 1, "label": 2}
MOST_CLASSES = 65_536  # kMostClasses of plan.h
_NAMES = count()


class _Options(ctypes.Structure):
    """FdtOptions of core_api.cc."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("mix_threshold", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("min_images", "max_images", "pad", "flip")),
        *((name, ctypes.c_int32) for name in ("channels", "half", "hwc", "targets")),
        ("mean", ctypes.c_float * 4),
        ("inv_std", ctypes.c_float * 4),
        ("series", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class CoreOutput:
    """How outputs are written; mean and std in 0..255, one a channel."""

    mean: Sequence[float]
    std: Sequence[float]
    half: bool = False
    channels_last: bool = False
    targets: str = "soft"


HOST = -1  # in the place of a GPU's number


class NativePool:
    """u8[n h w c] where it is drawn from, and nowhere else: in huge pages of the host, plane after plane, or on a GPU.
    `name` is what operators `superpose_resident` of that device find it by.

    The memory is let go of by `close`, or with this object, once no operator uses it any more.
    """

    def __init__(self, core: Core, handle: int, shape: tuple[int, int, int, int], pad: int) -> None:
        self.core, self.handle, self.shape, self.pad = core, handle, shape, pad
        self.name: str | None = None
        self.labels: LabelledPool | None = None

    def set_images(self, first: int, images: U8) -> None:
        """u8[m h w c] become images first .. first + m - 1; before the pool is finished."""
        if images.shape[1:] != self.shape[1:] or images.dtype != np.uint8 or first + len(images) > self.shape[0]:
            raise ValueError(
                f"expected u8[m h w c] of {self.shape}, got {images.dtype} {images.shape} for image {first} and on"
            )
        images = np.ascontiguousarray(images)
        self.core.check(self.core.library.fdt_pool_set(self.handle, first, len(images), _address(images)) == 0)

    def finish(self, labels: LabelledPool) -> NativePool:
        """Give every image its label, and the pool its name."""
        if len(labels) != self.shape[0]:
            raise ValueError(f"expected a label for each of {self.shape[0]} images, got {len(labels)}")
        name = f"pool {next(_NAMES)}"
        done = self.core.library.fdt_pool_finish(
            self.handle, _address(labels.labels), labels.num_classes, name.encode()
        )
        self.core.check(done == 0)
        self.name, self.labels = name, labels
        return self

    def images(self) -> U8:
        """u8[n h w c], a copy."""
        pixels = np.empty(self.shape, np.uint8)
        self.core.check(self.core.library.fdt_pool_get(self.handle, 0, len(pixels), _address(pixels)) == 0)
        return pixels

    def close(self) -> None:
        if self.handle:
            self.core.library.fdt_pool_release(self.handle, self.name.encode() if self.name else None)
            self.handle = 0

    def __del__(self) -> None:
        self.close()


class Core:
    """The C functions of a library. RuntimeError or ValueError carry what the library says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "fdt_error": (ctypes.c_char_p, []),
            "fdt_isa": (ctypes.c_char_p, []),
            "fdt_pool_create": (pointer, [*[i64] * 5, i32]),
            "fdt_pool_set": (i64, [pointer, i64, i64, pointer]),
            "fdt_pool_get": (i64, [pointer, i64, i64, pointer]),
            "fdt_pool_finish": (i64, [pointer, pointer, ctypes.c_uint32, ctypes.c_char_p]),
            "fdt_pool_release": (i64, [pointer, ctypes.c_char_p]),
            "fdt_pool_read": (pointer, [ctypes.c_char_p, i64, i32, i32]),
            "fdt_pool_shape": (None, [pointer, pointer]),
            "fdt_pool_labels": (None, [pointer, pointer]),
            "fdt_epoch_order": (i64, [ctypes.c_uint64, ctypes.c_uint32, i64, pointer]),
            "fdt_series": (i64, [ctypes.c_char_p, ctypes.c_uint32, pointer]),
            "fdt_draw_plans": (i64, [pointer, pointer, ctypes.c_uint32, pointer, pointer, i64, i64, *[pointer] * 6]),
            "fdt_superpose": (
                i64,
                [pointer, pointer, ctypes.c_uint32, pointer, pointer, i64, i32, i32, *[pointer] * 3],
            ),
            "fdt_yardstick": (ctypes.c_double, [pointer, pointer, pointer, i64, i32, i32]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    @property
    def isa(self) -> str:
        """The level of the instruction set that is used here, such as "v4"."""
        name = self.library.fdt_isa()
        return self.check(name).decode()

    def pool(self, images: U8, labels: npt.ArrayLike, num_classes: int, pad: int, device: int = HOST) -> NativePool:
        """A pool of u8[n h w c] images, registered under a name of its own."""
        pool = self.begin_pool(len(images), images.shape[1:], pad, device)
        pool.set_images(0, images)
        return pool.finish(LabelledPool(labels, num_classes))

    def begin_pool(self, n: int, shape: Sequence[int], pad: int, device: int = HOST) -> NativePool:
        """Room for n images of (h, w, c), to be set, then finished; plans may ask for shifts by up to `pad` pixels.
        device: the number of a GPU."""
        h, w, c = shape
        return NativePool(self, self.check(self.library.fdt_pool_create(n, h, w, c, pad, device)), (n, h, w, c), pad)

    def read_pool(self, folder: str, pad: int = 0, num_threads: int = 1, device: int = HOST) -> NativePool:
        """A folder of raw shards, as the operator reads it."""
        handle = self.check(self.library.fdt_pool_read(folder.encode(), pad, num_threads, device))
        values = np.empty(5, np.int64)
        self.library.fdt_pool_shape(handle, _address(values))
        n, h, w, c, num_classes = map(int, values)
        labels = np.empty(n, np.int64)
        self.library.fdt_pool_labels(handle, _address(labels))
        pool = NativePool(self, handle, (n, h, w, c), pad)
        pool.labels = LabelledPool(labels, num_classes)
        return pool

    def epoch_order(self, seed: int, epoch: int, n: int) -> I64:
        order = np.empty(n, np.int64)
        self.check(self.library.fdt_epoch_order(seed, epoch, n, _address(order)) == 0)
        return order

    def weights(self, series: str, most: int) -> npt.NDArray[np.float32]:
        """f32[most (most + 1) / 2]: the weights of sums of 1, 2, .. most images, one after the other."""
        triangle = np.empty(most * (most + 1) // 2, np.float32)
        self.check(self.library.fdt_series(series.encode(), most, _address(triangle)) == 0)
        return triangle

    def draw_plans(
        self,
        pool: NativePool,
        seed: int,
        epoch: int,
        indices: npt.ArrayLike,
        fdt: FDT,
        augment: Augment = NO_AUGMENT,
        leaders: npt.ArrayLike | None = None,
    ) -> Plans:
        """As `plans.draw_plans`, by the native code."""
        options = _options(seed, fdt, augment)
        index, leader = _i64(indices), None if leaders is None else _i64(leaders)
        offsets = np.empty(len(index) + 1, np.int64)
        fields = [np.empty(0, np.int64) for _ in range(4)] + [np.empty(0, np.uint8)]
        for _ in range(2):  # the first call says how much room it takes
            m = self.library.fdt_draw_plans(
                pool.handle, ctypes.byref(options), epoch, _address(index), _address(leader), len(index),
                len(fields[0]), _address(offsets), *map(_address, fields)
            )  # fmt: skip
            self.check(m >= 0)
            fields = fields if len(fields[0]) == m else [np.empty(m, array.dtype) for array in fields]
        images, classes, dy, dx, flip = fields
        weights = batch_weights(fdt.series, np.diff(offsets))
        return Plans(offsets, images, classes, weights, dy, dx, flip.astype(bool))

    def superpose(
        self,
        pool: NativePool,
        seed: int,
        epoch: int,
        indices: npt.ArrayLike,
        fdt: FDT,
        augment: Augment,
        output: CoreOutput,
        leaders: npt.ArrayLike | None = None,
        num_threads: int = 1,
        repeats: int = 1,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
        """Images [n channels h w] or [n h w channels], targets f32[n num_classes] or i64[n], and seconds."""
        assert pool.labels is not None
        channels = len(output.mean)
        series = series_argument(fdt.series, image_range(fdt, pool.labels)[1]).encode()
        options = _options(seed, fdt, augment)
        options.channels, options.half, options.hwc = channels, output.half, output.channels_last
        options.targets, options.series = TARGETS[output.targets], series
        options.mean[:channels] = output.mean
        options.inv_std[:channels] = [1 / value for value in output.std]
        index, leader = _i64(indices), None if leaders is None else _i64(leaders)
        _, h, w, _ = pool.shape
        size = (h, w, channels) if output.channels_last else (channels, h, w)
        images = np.empty((len(index), *size), np.float16 if output.half else np.float32)
        labels_only = output.targets == "label"
        targets: npt.NDArray[Any] = (
            np.empty(len(index), np.int64)
            if labels_only
            else np.empty((len(index), pool.labels.num_classes), np.float32)
        )
        seconds = ctypes.c_double()
        done = self.library.fdt_superpose(
            pool.handle, ctypes.byref(options), epoch, _address(index), _address(leader), len(index), num_threads,
            repeats, _address(images), _address(targets), ctypes.byref(seconds)
        )  # fmt: skip
        self.check(done == 0)
        return images, targets, seconds.value

    def yardstick(self, pool: NativePool, plans: Plans, num_threads: int = 1, repeats: int = 1) -> float:
        """Seconds of the plain multiply-adds of these plans' images, u8 into float32: the machine's own bound."""
        counts, images = _i64(plans.num_images()), _i64(plans.images)
        seconds: float = self.library.fdt_yardstick(
            pool.handle, _address(counts), _address(images), len(counts), num_threads, repeats
        )
        self.check(seconds >= 0)
        return seconds

    def check(self, result: Any) -> Any:
        """The result, or a ValueError with what the library says of it."""
        if not result:
            raise ValueError(self.library.fdt_error().decode(errors="replace"))
        return result


def _options(seed: int, fdt: FDT, augment: Augment) -> _Options:
    return _Options(
        seed=seed,
        mix_threshold=round(fdt.probability * 2**32),  # as superposition.py has it
        min_images=fdt.min_images,
        max_images=fdt.max_images or 0,
        pad=augment.pad,
        flip=augment.flip,
    )


def _i64(values: npt.ArrayLike) -> I64:
    return np.ascontiguousarray(values, np.int64)


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
