"""The operators' parts without DALI, for tests and measurements: `native_probe.cc` through ctypes.

    probe = Probe(ctypes.CDLL(str(build_probe())))

It is compiled from the same sources as the operators, and kept in the same cache.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.mixing import FDT, Mix
from fdt_pipeline.definition.plans import Plans
from fdt_pipeline.definition.superposition import I64, NO_AUGMENT, Augment, Pool
from fdt_pipeline.native.arguments import mix_argument
from fdt_pipeline.native.build import obtain
from fdt_pipeline.native.pool import HOST, U8, NativePool, checked
from fdt_pipeline.native.recipe import ISA, LEVELS, core_recipe

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native_probe.cc", "yardstick_kernel.cc"))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
TARGETS = {"soft": 0, "dominant": 1, "label": 2}
Outputs = tuple[npt.NDArray[Any], npt.NDArray[Any], float]


def build_probe(extra_flags: Sequence[str] = ()) -> Path:
    """The library; `extra_flags` such as SANITIZERS come last."""
    return obtain(core_recipe(SOURCES, extra_flags)).path


def load_levels(library: Path, folder: Path) -> dict[str, Probe]:
    """A probe for each level of the instruction set that this processor has, the best last.

    A loaded library chooses its level once, so each has a copy of its own in `folder`.
    """
    found: dict[str, Probe] = {}
    for level in LEVELS:
        probe = Probe(ctypes.CDLL(str(shutil.copy(library, folder / f"{level}.so"))))
        with patch.dict(os.environ, {ISA: level}), suppress(ValueError):  # this processor lacks it
            assert probe.isa == level
            found[level] = probe
    return found


@dataclass(frozen=True)
class ProbeOutput:
    """How outputs are written; mean and std in 0..255, one for each channel."""

    mean: Sequence[float]
    std: Sequence[float]
    half: bool = False
    channels_last: bool = False
    targets: str = "soft"


class _Options(ctypes.Structure):
    """ProbeOptions."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("pad", "flip")),
        *((name, ctypes.c_int32) for name in ("channels", "half", "hwc", "targets")),
        *((name, ctypes.c_float * 4) for name in ("mean", "inv_std")),
        ("mix", ctypes.c_char_p),
    ]


class _Ids(ctypes.Structure):
    """ProbeIds."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("indices", "leaders")),
        *((name, ctypes.c_int64) for name in ("n", "epoch")),
        *((name, ctypes.c_void_p) for name in ("spans", "order")),
        *((name, ctypes.c_int64) for name in ("num_spans", "order_size")),
    ]


class _Window(ctypes.Structure):
    """ProbeWindow."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pixels", "labels")),
        *((name, ctypes.c_int64) for name in ("n", "h", "w", "c", "num_classes", "is_scattered")),
    ]


@dataclass(frozen=True)
class Draw:
    """What outputs are drawn from, beside the pool: the arguments of `plans.draw_plans`. A GPU may be asked for them in
    one batch of spans i64[m 3], (first, count, modulo), led by the images of `order`."""

    seed: int
    epoch: int
    indices: npt.ArrayLike
    mix: Mix = FDT()  # noqa: RUF009 (it is frozen)
    augment: Augment = NO_AUGMENT
    leaders: npt.ArrayLike | None = None
    spans: npt.ArrayLike | None = None
    order: npt.ArrayLike | None = None


class Probe:
    """The C functions of a library. ValueError carries what the library says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        pointer, i64, i32, u32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_uint32
        text, batch = ctypes.c_char_p, [ctypes.POINTER(_Options), ctypes.POINTER(_Ids)]
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "fdt_error": (text, []),
            "fdt_set_nvrtc_path": (i64, [text]),
            "probe_isa": (text, []),
            "probe_epoch_order": (i64, [ctypes.c_uint64, u32, i64, pointer]),
            "probe_weights": (i64, [text, u32, pointer]),
            "probe_draw_plans": (i64, [pointer, *batch, i64, *[pointer] * 9]),
            "probe_superpose": (i64, [pointer, *batch, i32, i32, *[pointer] * 3]),
            "probe_yardstick": (i64, [pointer, pointer, pointer, i64, i32, i32, pointer]),
            "probe_set_cuda_path": (i64, [text]),
            "probe_compile_kernels": (i64, [text]),
            "probe_gpu_superpose": (i64, [pointer, pointer, *batch, i64, i32, *[pointer] * 3]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    @property
    def isa(self) -> str:
        """The level of the instruction set that is used here, such as "v4"."""
        return checked(self.library, self.library.probe_isa()).decode()

    def pool(self, images: U8, labels: npt.ArrayLike, num_classes: int, pad: int, device: int = HOST) -> NativePool:
        """A pool of u8[n h w c] images."""
        pool = NativePool.begin(len(images), images.shape[1:], pad, device, self.library)
        pool.set_images(0, images)
        return pool.finish(Pool(labels, num_classes))

    def epoch_order(self, seed: int, epoch: int, n: int) -> I64:
        order = np.empty(n, np.int64)
        self._check(self.library.probe_epoch_order(seed, epoch, n, _address(order)))
        return order

    def weights(self, series: str, most: int) -> npt.NDArray[np.float32]:
        """f32[most (most + 1) / 2]: the weights of sums of 1, 2, .. most images, one after the other."""
        triangle = np.empty(most * (most + 1) // 2, np.float32)
        self._check(self.library.probe_weights(series.encode(), most, _address(triangle)))
        return triangle

    def draw_plans(self, pool: NativePool, draw: Draw) -> Plans:
        """Like `plans.draw_plans`, by the native code."""
        assert pool.labels is not None
        options, (ids, index, _) = _options(draw, pool.labels), _ids(draw)
        offsets, boxes = np.empty(len(index) + 1, np.int64), np.empty((len(index), 4), np.int64)
        smoothing = np.empty(len(index))
        kinds = [np.int64] * 4 + [np.uint8, np.float32]
        fields = [np.empty(0, kind) for kind in kinds]
        for _ in range(2):  # the first call says how much room it takes
            size, addresses = len(fields[0]), map(_address, (offsets, boxes, smoothing, *fields))
            m = self._check(self.library.probe_draw_plans(pool.handle, options, ids, size, *addresses))
            fields = fields if len(fields[0]) == m else [np.empty(m, kind) for kind in kinds]
        images, classes, dy, dx, flip, weights = fields
        return Plans(offsets, images, classes, weights, dy, dx, flip.astype(bool), boxes, smoothing)

    def superpose(
        self, pool: NativePool, draw: Draw, output: ProbeOutput, num_threads: int = 1, repeats: int = 1
    ) -> Outputs:
        """On the CPU: images [n channels h w] or [n h w channels], targets f32[n num_classes] or i64[n], seconds."""
        assert pool.labels is not None
        function, source = self.library.probe_superpose, [pool.handle]
        return self._superpose(function, source, pool.shape, pool.labels, draw, output, num_threads, repeats)

    def yardstick(self, pool: NativePool, plans: Plans, num_threads: int = 1, repeats: int = 1) -> float:
        """Seconds of the plain multiply-adds of these plans' images, u8 into float32: the machine's own bound."""
        counts, images, seconds = _i64(plans.num_images()), _i64(plans.images), ctypes.c_double()
        numbers = (len(counts), num_threads, repeats, ctypes.byref(seconds))
        self._check(self.library.probe_yardstick(pool.handle, _address(counts), _address(images), *numbers))
        return seconds.value

    def set_driver(self, cuda: object, nvrtc: object) -> None:
        """Libraries in the place of the system's libcuda and libnvrtc; to be called before the GPU is first used."""
        self._check(self.library.probe_set_cuda_path(str(cuda).encode()))
        self._check(self.library.fdt_set_nvrtc_path(str(nvrtc).encode()))

    def compile_kernels(self, arch: str) -> int:
        """Bytes of the GPU's kernels for "sm_90", say; this needs NVRTC, but no GPU."""
        return self._check(self.library.probe_compile_kernels(arch.encode()))

    def gpu_superpose(
        self, pool: NativePool, draw: Draw, output: ProbeOutput, batch_size: int = 4096, repeats: int = 1
    ) -> Outputs:
        """Like `superpose`, on GPU 0 from a pool there; `seconds` leaves out the first of the repeats."""
        assert pool.labels is not None
        function, source = self.library.probe_gpu_superpose, [pool.handle, None]
        return self._superpose(function, source, pool.shape, pool.labels, draw, output, batch_size, repeats)

    def gpu_superpose_window(
        self, images: U8, labels: Pool, draw: Draw, output: ProbeOutput, scattered: bool = False, batch_size: int = 4096
    ) -> Outputs:
        """The same from a window of images that are in one piece on the GPU, or each on its own."""
        n, h, w, c = images.shape
        window = _Window(_address(images), _address(labels.labels), n, h, w, c, labels.num_classes, scattered)
        function, source = self.library.probe_gpu_superpose, [None, ctypes.byref(window)]
        return self._superpose(function, source, images.shape, labels, draw, output, batch_size, 1)

    def _superpose(
        self, function: Any, source: Sequence[Any], shape: Sequence[int], labels: Pool, draw: Draw, output: ProbeOutput,
        *numbers: int,
    ) -> Outputs:  # fmt: skip
        """numbers: the arguments of the function between the ids and the outputs."""
        images, targets = _room(draw, output, shape, labels.num_classes)
        options, (ids, *_kept), seconds = _options(draw, labels, output), _ids(draw), ctypes.c_double()
        outputs = (_address(images), _address(targets), ctypes.byref(seconds))
        self._check(function(*source, options, ids, *numbers, *outputs))
        return images, targets, seconds.value

    def _check(self, result: int) -> int:
        checked(self.library, result >= 0)
        return result


def _options(draw: Draw, labels: Pool, output: ProbeOutput | None = None) -> _Options:
    options = _Options(
        seed=draw.seed,
        pad=draw.augment.pad,
        flip=draw.augment.flip,
        mix=mix_argument(draw.mix, labels.num_distinct).encode(),
    )
    if output is not None:
        channels = len(output.mean)
        options.channels, options.half, options.hwc = channels, output.half, output.channels_last
        options.targets = TARGETS[output.targets]
        options.mean[:channels] = output.mean
        options.inv_std[:channels] = [1 / value for value in output.std]
    return options


def _ids(draw: Draw) -> tuple[_Ids, I64, tuple[I64 | None, ...]]:
    """The structure, and the arrays that it points to, which must outlive it."""
    index = _i64(draw.indices)
    leader, spans, order = (None if part is None else _i64(part) for part in (draw.leaders, draw.spans, draw.order))
    sizes = (0 if part is None else len(part) for part in (spans, order))
    ids = _Ids(_address(index), _address(leader), len(index), draw.epoch, _address(spans), _address(order), *sizes)
    return ids, index, (leader, spans, order)


def _room(draw: Draw, output: ProbeOutput, shape: Sequence[int], num_classes: int) -> tuple[npt.NDArray[Any], ...]:
    """Arrays for images and targets, filled with what no output holds."""
    n, (_, h, w, _), channels = len(_i64(draw.indices)), shape, len(output.mean)
    size = (h, w, channels) if output.channels_last else (channels, h, w)
    images = np.full((n, *size), np.nan, np.float16 if output.half else np.float32)
    if output.targets == "label":
        return images, np.full(n, -2)
    return images, np.full((n, num_classes), np.nan, np.float32)


def _i64(values: npt.ArrayLike) -> I64:
    return np.ascontiguousarray(values, np.int64)


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
