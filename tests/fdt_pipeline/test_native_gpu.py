"""The GPU's kernels and their launcher on a machine without a GPU.

`csrc/superpose.cu` is compiled as C++, every CUDA thread a fiber, into a library that stands in for the driver
(`tests/native_emulation`); the launcher (`csrc/gpu.cc`) loads that in libcuda's place. So this shows that plans, images
and targets are the definition's, that no thread waits in vain, that nothing outside of an array is read or written, and
what is asked of the driver. It cannot show what the hardware makes of it: its speed, its memory's order between threads
of different warps, or launches that are not done when the next one is made. Where there is a GPU, the tests of plans,
images and targets run on it as well.
"""

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch

from fdt_pipeline import FDTLoader
from fdt_pipeline.definition.plans import Plans, batch_targets, draw_plans
from fdt_pipeline.definition.series import Geometric, Power
from fdt_pipeline.definition.superposition import (
    FDT,
    NO_AUGMENT,
    Augment,
    Pool,
    image_range,
    standardize,
    superpose_images,
)
from fdt_pipeline.loader.memory import read_pool
from fdt_pipeline.native import NativeUnavailable, build_core
from fdt_pipeline.native.compiler import find_compiler
from fdt_pipeline.native.core import TARGETS, Core, CoreOutput, _options
from fdt_pipeline.native.driver import nvrtc_path
from fdt_pipeline.native.recipe import CSRC
from fdt_pipeline.native.series import series_argument
from fdt_pipeline.shards import load_shards

pytestmark = pytest.mark.compile

EMULATION = Path(__file__).parents[1] / "native_emulation"
SEED, EPOCH = 0x0123456789ABCDEF, 7
MEAN, STD = (122.0, 117.0, 104.0, 90.0), 256.0
RESIDENT, WINDOW, SCATTERED_WINDOW = 0, 1, 2
FIELDS = ("images", "classes", "dy", "dx", "flip", "weights")


class _Window(ctypes.Structure):
    """FdtGpuWindow of gpu_api.cc."""

    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "h", "w", "c", "num_classes", "is_scattered")),
    ]


@dataclass(frozen=True)
class Output:
    channels: int = 3
    half: bool = False
    hwc: bool = False
    targets: str = "soft"


@dataclass
class Gpu:
    """The library's functions about the GPU, and the driver that stands in for CUDA's, or None on a real GPU."""

    library: ctypes.CDLL
    driver: ctypes.CDLL | None

    @property
    def core(self):
        return Core(self.library)

    def pool(self, pixels, labels):
        return self.core.pool(pixels, labels.labels, labels.num_classes, pad=0, device=0)

    def options(self, fdt, augment, labels, output=Output()):
        options = _options(SEED, fdt, augment)
        options.channels, options.half, options.hwc = output.channels, output.half, output.hwc
        options.targets = TARGETS[output.targets]
        options.mean[:] = MEAN
        options.inv_std[:] = [1 / STD] * 4
        options.series = series_argument(fdt.series, image_range(fdt, labels)[1]).encode()
        return options

    def draw_plans(self, indices, labels, fdt, augment=NO_AUGMENT, leaders=None):
        indices = np.asarray(indices, np.int64)
        capacity = len(indices) * image_range(fdt, labels)[1]
        k, entries = np.empty(len(indices), np.uint32), np.empty((capacity, 6), np.uint32)
        pool = self.pool(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
        m = self.library.fdt_gpu_draw_plans(
            ctypes.byref(self.options(fdt, augment, labels)), ctypes.c_void_p(pool.handle), EPOCH, address(indices),
            address(leaders), ctypes.c_int64(len(indices)), ctypes.c_int64(capacity), address(k), address(entries)
        )  # fmt: skip
        self.check(m)
        image, label, dy, dx, flip, weight = np.ascontiguousarray(entries[:m].T)
        offsets = np.concatenate([[0], np.cumsum(k.astype(np.int64))])
        return Plans(offsets, image, label, weight.view(np.float32), dy, dx, flip.astype(bool))

    def superpose(self, indices, pixels, labels, fdt, augment, output, leaders=None, place=RESIDENT, batch_size=4096):
        """Images as [n h w channels] in float64, and targets."""
        if place == RESIDENT:
            return self.from_pool(self.pool(pixels, labels), indices, fdt, augment, output, leaders, batch_size)
        (_, h, w, c), scattered = pixels.shape, place == SCATTERED_WINDOW
        given = _Window(address(pixels), address(labels.labels), len(labels), h, w, c, labels.num_classes, scattered)
        return self._superpose(
            None, ctypes.byref(given), (h, w), labels, indices, fdt, augment, output, leaders, batch_size
        )

    def from_pool(self, pool, indices, fdt, augment, output, leaders=None, batch_size=4096, epoch=EPOCH):
        """The same, by an operator of its own, from a pool on the GPU."""
        handle = ctypes.c_void_p(pool.handle)
        return self._superpose(
            handle, None, pool.shape[1:3], pool.labels, indices, fdt, augment, output, leaders, batch_size, epoch
        )

    def _superpose(self, pool, window, size, labels, indices, fdt, augment, output, leaders, batch_size, epoch=EPOCH):
        n, (h, w), indices = len(indices), size, np.ascontiguousarray(indices, np.int64)
        size = (h, w, output.channels) if output.hwc else (output.channels, h, w)
        images = np.full((n, *size), np.nan, np.float16 if output.half else np.float32)
        targets = np.full(n, -2) if output.targets == "label" else np.full((n, labels.num_classes), np.nan, np.float32)
        done = self.library.fdt_gpu_superpose(
            ctypes.byref(self.options(fdt, augment, labels, output)), pool, window, epoch, address(indices),
            address(leaders), ctypes.c_int64(n), ctypes.c_int64(batch_size), address(images), address(targets)
        )  # fmt: skip
        self.check(done)
        return (images if output.hwc else images.transpose(0, 2, 3, 1)).astype(np.float64), targets

    def check(self, result):
        if result < 0:
            raise ValueError(self.library.fdt_gpu_error().decode())

    def counts(self):
        """Launches, allocations, synchronizations, pieces of memory that are not freed, bytes that were uploaded."""
        values = np.empty(5, np.int64)
        self.driver.emulation_counts(address(values))
        return dict(
            zip(("launches", "allocations", "synchronizations", "held", "uploaded"), map(int, values), strict=True)
        )


def address(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def compile_driver(folder, *flags):
    """The stand-in for libcuda with the kernels in it."""
    library = folder / "driver.so"
    words = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    words += ["-Wno-unknown-pragmas", "-fno-strict-aliasing", *flags, f"-I{CSRC}", str(EMULATION / "driver.cc")]
    subprocess.run([*find_compiler().command, *words, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def core_library():
    """The C functions without DALI, with the kernel's source in it."""
    try:
        return build_core()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def emulated(core_library, tmp_path_factory):
    driver = compile_driver(tmp_path_factory.mktemp("driver"))
    return Gpu(loaded(core_library, driver, driver), ctypes.CDLL(str(driver)))


@pytest.fixture(scope="module", params=["emulated", *(["real"] if Path("/dev/nvidiactl").exists() else [])])
def gpu(request, core_library, tmp_path_factory):
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    copy = shutil.copy(core_library, tmp_path_factory.mktemp("real"))  # as a library loads its driver once
    return Gpu(loaded(copy, "libcuda.so.1", nvrtc_path()), None)


def loaded(path, driver, nvrtc):
    library = ctypes.CDLL(str(path))
    library.fdt_set_cuda_path(str(driver).encode())
    library.fdt_set_nvrtc_path(str(nvrtc).encode())
    library.fdt_gpu_error.restype = ctypes.c_char_p
    library.fdt_gpu_superpose.restype = library.fdt_gpu_draw_plans.restype = ctypes.c_int64
    return library


def unbalanced(num_classes, rng):
    """Labels in which some classes are large, most are small, and every seventh is empty."""
    counts = rng.integers(1, 6, num_classes)
    counts[:: max(2, num_classes // 3)] *= 40
    counts[5::7] = 0
    return rng.permutation(np.repeat(np.arange(num_classes), counts))


def assert_same_plans(ours, theirs):
    assert np.array_equal(ours.offsets, theirs.offsets)
    for name in FIELDS:
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize(
    ("num_classes", "number", "most"),
    [
        (2, 3000, None), (7, 3000, None), (10, 3000, None), (32, 1000, None), (33, 1000, None), (100, 600, None),
        (1000, 60, None), (1024, 40, None), (1025, 40, None), (5000, 12, None), (32_800, 60, 40), (65_536, 60, 40),
    ],
)  # fmt: skip
def test_plans_equal_the_definition_bit_for_bit(gpu, num_classes, number, most):
    rng = np.random.default_rng(num_classes)
    labels = Pool(unbalanced(num_classes, rng), num_classes)
    indices = np.concatenate([np.arange(number - 2), [2**31, 2**32 - 1]])
    fdt, augment = FDT(max_images=most), Augment(pad=4)
    assert_same_plans(
        gpu.draw_plans(indices, labels, fdt, augment), draw_plans(SEED, EPOCH, indices, labels, fdt, augment)
    )


@pytest.mark.parametrize("num_classes", [10, 100, 2000])
@pytest.mark.parametrize(
    "fdt",
    [
        FDT(probability=0.5, min_images=3),
        FDT(min_images=9, max_images=9, series=Geometric(0.5)),
        FDT(min_images=8, max_images=10, anchor="epoch", series=Power(2.8)),
    ],
)
def test_plans_with_options_equal_the_definition_bit_for_bit(gpu, num_classes, fdt):
    rng = np.random.default_rng(5)
    labels = Pool(unbalanced(num_classes, rng), num_classes)
    indices = rng.integers(0, 2**32, 300 if num_classes < 1000 else 60)
    leaders = rng.integers(0, len(labels), len(indices)) if fdt.anchor == "epoch" else None
    augment = Augment(pad=0, flip=False)
    theirs = draw_plans(SEED, EPOCH, indices, labels, fdt, augment, leaders)
    assert_same_plans(gpu.draw_plans(indices, labels, fdt, augment, leaders), theirs)


def test_all_images_are_drawn_from_a_pool_of_one_class_and_of_one_image_a_class(gpu):
    one_class, one_each = Pool([3] * 8, 10), Pool(np.arange(100), 100)
    assert (gpu.draw_plans(np.arange(50), one_class, FDT()).num_images() == 1).all()
    plan = gpu.draw_plans([0], one_each, FDT(min_images=100))
    assert sorted(plan.images) == list(range(100))


def noise(n, shape, rng):
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8)


def expected_outputs(indices, pixels, labels, fdt, augment, output, leaders=None):
    """By the definition, in float64: images [n h w channels], targets."""
    plans = draw_plans(SEED, EPOCH, indices, labels, fdt, augment, leaders)
    sums = np.stack(
        [superpose_images(plan_with_f64_weights(plans[i], fdt), pixels, augment.pad) for i in range(len(plans))]
    )
    images = standardize(np.broadcast_to(sums, (*sums.shape[:3], output.channels)), MEAN[: output.channels], STD)
    first = plans.classes[plans.offsets[:-1]]
    return images, first if output.targets == "label" else batch_targets(plans, labels.num_classes, output.targets)


def plan_with_f64_weights(plan, fdt):
    return type(plan)(plan.images, plan.classes, fdt.series.weights(len(plan.images)), plan.dy, plan.dx, plan.flip)


def assert_same_images(ours, theirs, half=False):
    """2e-6 in units of (pixel - mean) / 256; a half has 11 bits."""
    allowed = 2e-6 + (2.0**-11 * np.abs(theirs) if half else 0)
    assert (np.abs(ours - theirs) <= allowed).all(), np.abs(ours - theirs).max()


SHAPES = [(28, 28, 1), (33, 17, 3), (64, 64, 3), (32, 32, 4), (9, 6, 2), (1, 1, 1), (5, 3, 3), (40, 300, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("augment", [NO_AUGMENT, Augment(pad=1, flip=False), Augment(pad=5)], ids=["0", "1", "5 flip"])
def test_images_and_targets_equal_the_definition(gpu, shape, augment):
    rng = np.random.default_rng(len(shape))
    labels = Pool(unbalanced(10, rng), 10)
    pixels, indices, output = noise(len(labels), shape, rng), np.arange(7), Output(channels=shape[2])
    images, targets = gpu.superpose(indices, pixels, labels, FDT(), augment, output)
    right, right_targets = expected_outputs(indices, pixels, labels, FDT(), augment, output)
    assert_same_images(images, right)
    assert np.array_equal(targets, right_targets)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("hwc", [False, True], ids=["chw", "hwc"])
@pytest.mark.parametrize(
    ("channels", "shape", "targets"),
    [
        (3, (12, 8, 3), "soft"),
        (3, (7, 5, 1), "dominant"),
        (4, (8, 8, 1), "label"),
        (2, (6, 9, 1), "soft"),
        (2, (5, 7, 2), "label"),
    ],
)
def test_outputs_are_written_as_asked(gpu, channels, shape, targets, hwc, half):
    rng = np.random.default_rng(channels)
    labels = Pool(unbalanced(10, rng), 10)
    pixels, indices, output = noise(len(labels), shape, rng), np.arange(30), Output(channels, half, hwc, targets)
    images, made_targets = gpu.superpose(indices, pixels, labels, FDT(), Augment(pad=2), output)
    right, right_targets = expected_outputs(indices, pixels, labels, FDT(), Augment(pad=2), output)
    assert_same_images(images, right, half)
    assert np.array_equal(made_targets, right_targets)


def test_a_large_image_is_the_same_in_all_its_tiles(gpu):
    rng = np.random.default_rng(1)
    labels = Pool(np.arange(40) % 20, 20)
    pixels, output = noise(40, (224, 224, 3), rng), Output()
    images, targets = gpu.superpose([3, 8], pixels, labels, FDT(), Augment(pad=8), output)
    right, right_targets = expected_outputs([3, 8], pixels, labels, FDT(), Augment(pad=8), output)
    assert_same_images(images, right)
    assert np.array_equal(targets, right_targets)


@pytest.mark.parametrize("k", [248, 255, 256, 257, 1000, 5000])
def test_sums_of_many_images_keep_the_bound(gpu, k):
    """In one go roundings would add up to 4e-6 in a sum of 5,000."""
    labels = Pool(np.arange(k), k)
    pixels, output, fdt = noise(k, (40, 40, 1), np.random.default_rng(2)), Output(channels=1), FDT(min_images=k)
    images, _ = gpu.superpose([0], pixels, labels, fdt, Augment(pad=1), output)
    assert_same_images(images, expected_outputs([0], pixels, labels, fdt, Augment(pad=1), output)[0])


def test_images_that_are_shifted_out_of_sight_are_zeros(gpu):
    labels = Pool([0, 1, 2], 3)
    pixels, augment, output = np.full((3, 4, 6, 3), 255, np.uint8), Augment(pad=20), Output()
    images, _ = gpu.superpose(np.arange(200), pixels, labels, FDT(), augment, output)
    right, _ = expected_outputs(np.arange(200), pixels, labels, FDT(), augment, output)
    assert (right == right.min(axis=(0, 1, 2))).all(axis=(1, 2, 3)).any()
    assert_same_images(images, right)


@pytest.mark.parametrize("place", [RESIDENT, WINDOW, SCATTERED_WINDOW], ids=["resident", "window", "scattered window"])
@pytest.mark.parametrize("targets", ["soft", "label"])
def test_padding_is_zeros_and_leaders_lead_wherever_images_lie(gpu, place, targets):
    rng = np.random.default_rng(3)
    labels = Pool(unbalanced(50, rng), 50)
    pixels, output, fdt = noise(len(labels), (11, 7, 3), rng), Output(targets=targets), FDT(anchor="epoch")
    leaders = rng.integers(0, len(labels), 90)
    indices = np.where(np.arange(90) % 9 == 4, -1, np.arange(90) * 1000)
    images, made = gpu.superpose(indices, pixels, labels, fdt, Augment(), output, leaders, place, batch_size=40)
    there = indices >= 0
    right, right_targets = expected_outputs(indices[there], pixels, labels, fdt, Augment(), output, leaders[there])
    assert_same_images(images[there], right)
    assert np.array_equal(made[there], right_targets)
    assert (images[~there] == 0).all()
    assert (made[~there] == (-1 if targets == "label" else 0)).all()


@pytest.mark.parametrize("place", [WINDOW, SCATTERED_WINDOW], ids=["window", "scattered window"])
def test_a_window_gives_the_bits_of_a_resident_pool(gpu, place):
    rng = np.random.default_rng(4)
    labels = Pool(unbalanced(40, rng), 40)
    pixels, given = noise(len(labels), (9, 11, 3), rng), (labels, FDT(), Augment(), Output())
    resident, targets = gpu.superpose(np.arange(60), pixels, *given)
    window, window_targets = gpu.superpose(np.arange(60), pixels, *given, place=place)
    assert np.array_equal(window, resident)
    assert np.array_equal(window_targets, targets)


def test_an_output_is_the_same_whatever_batch_it_is_in_and_in_whatever_order_threads_run(emulated):
    """The second: a barrier that is missing would show, as threads run from one to the next."""
    rng = np.random.default_rng(5)
    labels = Pool(unbalanced(70, rng), 70)
    pixels, given = noise(len(labels), (16, 16, 3), rng), (labels, FDT(), Augment(), Output())
    indices = rng.integers(0, 1000, 40)
    whole, targets = emulated.superpose(indices, pixels, *given)
    pieces, piece_targets = emulated.superpose(indices, pixels, *given, batch_size=7)
    emulated.driver.emulation_run_backwards(1)
    try:
        backwards, backwards_targets = emulated.superpose(indices, pixels, *given)
    finally:
        emulated.driver.emulation_run_backwards(0)
    assert np.array_equal(pieces, whole)
    assert np.array_equal(piece_targets, targets)
    assert np.array_equal(backwards, whole)
    assert np.array_equal(backwards_targets, targets)


@pytest.mark.parametrize("place", [RESIDENT, SCATTERED_WINDOW], ids=["resident", "scattered window"])
def test_nothing_waits_or_allocates_from_batch_to_batch_and_all_memory_is_freed(emulated, place):
    """A batch is its launches: one, and those that carry what is not in parameters. The test itself allocates two."""
    labels = Pool(np.arange(30) % 10, 10)
    pixels, fdt, output = np.zeros((30, 4, 4, 1), np.uint8), FDT(anchor="epoch"), Output(channels=1)

    def spent(num_batches):
        before = emulated.counts()
        leaders = np.zeros(num_batches * 8, np.int64)
        emulated.superpose(
            np.arange(num_batches * 8), pixels, labels, fdt, NO_AUGMENT, output, leaders, place, batch_size=8
        )
        after = emulated.counts()
        return {name: after[name] - before[name] for name in before}

    few, many = spent(2), spent(12)
    assert many["synchronizations"] == few["synchronizations"]
    assert many["held"] == 0
    assert many["allocations"] - few["allocations"] == 10 * 2
    assert many["launches"] == 12 * 2


def test_outputs_that_follow_each_other_are_one_launch(emulated):
    labels, before = Pool([0, 1], 2), emulated.counts()
    emulated.superpose(np.arange(50), np.zeros((2, 4, 4, 1), np.uint8), labels, FDT(), NO_AUGMENT, Output(channels=1))
    assert emulated.counts()["launches"] - before["launches"] == 1


class StandIn:
    """DALI's pipeline of an epoch, which makes each batch by an operator of its own."""

    def __init__(self, gpu, pool, numbers):
        self.gpu, self.pool, self.numbers, self.batch = gpu, pool, numbers, 0

    def build(self):
        pass

    def run(self):
        ids = self.numbers(self.batch)
        self.batch += 1
        images, targets = self.gpu.from_pool(
            self.pool, ids[:, 1], FDT(), Augment(), Output(), epoch=ctypes.c_uint32(ids[0, 0])
        )
        fields = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32), targets
        return [SimpleNamespace(as_tensor=lambda field=field: field) for field in fields]

    def _shutdown(self):
        pass


@pytest.fixture
def pools(emulated, monkeypatch):
    """Name -> pool of the loaders that are made with device="cuda": they take the emulation for a GPU."""
    found = WeakValueDictionary()

    def read(*arguments):
        pool = read_pool(*arguments)
        found[pool.name] = pool
        return pool

    def pipeline(numbers, arguments, device, **options):
        return StandIn(emulated, found[arguments["pool"]], numbers)

    monkeypatch.setattr("fdt_pipeline.loader.loader.checked_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr("fdt_pipeline.loader.loader.choose_engine", lambda *_: "native")
    monkeypatch.setattr("fdt_pipeline.loader.loader.read_pool", read)
    monkeypatch.setattr("fdt_pipeline.loader.resident_pool.native_core", lambda: emulated.core)
    monkeypatch.setattr("fdt_pipeline.loader.graphs.native_resident_pipeline", pipeline)
    return found


def test_a_loader_uploads_its_pool_once_and_frees_it_with_itself(emulated, pools, numbered_shards):
    before = emulated.counts()
    loader = FDTLoader(numbered_shards, 32, device="cuda", mode="resident", seed=SEED)
    built = emulated.counts()
    pixels, labels, _ = load_shards(numbered_shards)
    index_bytes = 4 * (2 * len(labels) + loader.num_classes + 1)
    assert built["uploaded"] - before["uploaded"] == pixels.nbytes + index_bytes
    loader.set_epoch(EPOCH)
    epochs = [list(loader) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [8] * 3
    uploaded = emulated.counts()["uploaded"] - built["uploaded"]  # the weights of each batch's operator
    assert uploaded < pixels.nbytes / 4
    images, targets = epochs[0][0]
    given = np.arange(32), pixels, Pool(labels, loader.num_classes), FDT(), Augment(), Output()
    right, right_targets = expected_outputs(*given)
    assert_same_images(images.permute(0, 2, 3, 1).numpy(), right)
    assert np.array_equal(targets.numpy(), right_targets)
    loader.close()
    assert emulated.counts()["held"] == before["held"]
    assert not pools


def test_a_pool_on_a_gpu_is_never_on_the_host_as_well(emulated):
    """Memory of the emulated GPU is the host's, so the limit leaves room for one copy of the pool and a quarter."""
    block = np.ones((4096, 32, 32, 1), np.uint8)
    num_blocks = 16
    with memory_limit(num_blocks * block.nbytes * 5 // 4):
        pool = emulated.core.begin_pool(num_blocks * len(block), block.shape[1:], 0, device=0)
        for number in range(num_blocks):
            pool.set_images(number * len(block), block)
        pool.finish(Pool(np.zeros(pool.shape[0], np.int64), 1))
        with pytest.raises(ValueError, match="out of memory"):
            emulated.core.begin_pool(num_blocks * len(block), block.shape[1:], 0)


@contextmanager
def memory_limit(num_bytes):
    """So many more bytes of private memory than this process has now."""
    [used] = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(used) * 1024 + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_the_host_asks_of_a_pool_on_a_gpu_is_there(gpu, numbered_shards, num_threads):
    """As it is loaded from Python, and as the operator reads a folder: images, labels, and plans drawn on the host."""
    pixels, labels, _ = load_shards(numbered_shards)
    read = gpu.core.read_pool(str(numbered_shards), num_threads=num_threads, device=0)
    for pool in (gpu.pool(pixels, Pool(labels, 7)), read):
        assert np.array_equal(pool.images(), pixels)
        assert np.array_equal(pool.labels.labels, labels)
        ours = gpu.core.draw_plans(pool, SEED, EPOCH, np.arange(50), FDT())
        assert_same_plans(ours, draw_plans(SEED, EPOCH, np.arange(50), pool.labels, FDT()))
        with pytest.raises(ValueError, match="expected a pool on the host, got one on a GPU"):
            gpu.core.superpose(pool, SEED, EPOCH, [0], FDT(), NO_AUGMENT, CoreOutput(MEAN[:3], (STD,) * 3))


def test_failures_of_the_driver_are_told_in_its_words_and_leave_nothing_behind(emulated):
    labels, held = Pool(np.arange(4), 4), emulated.counts()["held"]
    pixels = np.zeros((4, 32, 32, 1), np.uint8)
    emulated.driver.emulation_limit_allocations(ctypes.c_longlong(1000))
    try:
        with pytest.raises(
            ValueError, match=r"could not allocate 4096 bytes on the GPU: out of memory \(CUDA error 2\)"
        ):
            emulated.superpose([0], pixels, labels, FDT(), NO_AUGMENT, Output(channels=1))
    finally:
        emulated.driver.emulation_limit_allocations(ctypes.c_longlong(-1))
    assert emulated.counts()["held"] == held


def test_what_the_kernel_cannot_do_is_refused(gpu):
    labels, pixels = Pool([0, 1], 2), np.zeros((2, 4, 4, 3), np.uint8)
    anchored = FDT(anchor="epoch")
    with pytest.raises(ValueError, match="leader 2 is outside of the pool's 2 images"):
        gpu.superpose([0], pixels, labels, anchored, NO_AUGMENT, Output(), np.array([2]))
    with pytest.raises(ValueError, match=r"index must be below 2\^32"):
        gpu.superpose([2**32], pixels, labels, FDT(), NO_AUGMENT, Output())
    with pytest.raises(ValueError, match="as many as images have or copies of one, got 4 from 3"):
        gpu.superpose([0], pixels, labels, FDT(), NO_AUGMENT, Output(channels=4))
    with pytest.raises(ValueError, match="with pad 2000000"):
        gpu.superpose([0], pixels, labels, FDT(), Augment(pad=2_000_000), Output())


def test_the_check_of_a_gpu_passes_here(gpu):
    message = ctypes.create_string_buffer(1000)
    code = gpu.library.fdt_gpu_self_check(0, message, ctypes.c_size_t(len(message)))
    assert (code, message.value[:25]) == (0, b"plans equal the CPU's, im")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("-DFDT_EMULATE_WRONG_PLANS", b"the GPU's plans of output"),
        ("-DFDT_EMULATE_WRONG_PIXELS", b"the GPU's resident images of output"),
    ],
)
def test_the_check_of_a_gpu_finds_what_is_wrong(core_library, tmp_path, broken, what):
    code, message = checked_in_a_child(core_library, compile_driver(tmp_path, broken))
    assert code == 1
    assert message.startswith(what), message


def checked_in_a_child(core_library, driver, nvrtc=None, function="fdt_gpu_self_check", argument="0", **environment):
    """(what a function returned, its message): libraries are loaded once a process."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(core_library), str(driver), str(nvrtc or driver), function, argument],
        capture_output=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert child.returncode in (0, 1), child.stderr.decode()
    return child.returncode, child.stdout


CHILD = """
import ctypes, sys
core, driver, nvrtc, function, argument = sys.argv[1:]
library = ctypes.CDLL(core)
library.fdt_set_cuda_path(driver.encode())
library.fdt_set_nvrtc_path(nvrtc.encode())
message = ctypes.create_string_buffer(4000)
given = int(argument) if argument.isdigit() else argument.encode()
code = getattr(library, function)(given, message, ctypes.c_size_t(len(message)))
sys.stdout.write(message.value.decode())
sys.exit(code)
"""


@pytest.mark.process
def test_without_a_driver_or_nvrtc_the_error_says_what_is_missing(core_library, tmp_path):
    code, message = checked_in_a_child(core_library, tmp_path / "libcuda.so.1")
    assert code == 1
    assert message.startswith(b"the GPU engine needs NVIDIA's driver, and libcuda.so.1 does not load:")
    code, message = checked_in_a_child(core_library, compile_driver(tmp_path), tmp_path / "libnvrtc.so.13")
    assert code == 1
    assert message.startswith(b"the GPU engine needs NVRTC (pip install nvidia-cuda-nvrtc")


def test_nothing_outside_of_an_array_is_read_or_written(core_library, tmp_path):
    """Under AddressSanitizer and UBSan, with device memory in pieces that end where they were asked to."""
    driver = compile_driver(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    runtime = [subprocess.run([*find_compiler().command, f"-print-file-name={name}"], capture_output=True, check=True,
                              text=True).stdout.strip() for name in ("libasan.so", "libubsan.so")]  # fmt: skip
    sanitized = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    code, message = checked_in_a_child(core_library, driver, **sanitized)
    assert code == 0, message


@pytest.mark.skipif(nvrtc_path() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "compute_90"])
def test_nvrtc_compiles_the_kernels(core_library, arch):
    code, message = checked_in_a_child(core_library, "", nvrtc_path(), "fdt_nvrtc_compile", arch)
    assert code == 0, message
    assert message.startswith(b"bytes for 1 to 4 channels: ")


@pytest.mark.skipif(nvrtc_path() is None, reason="NVRTC is not installed")
def test_an_architecture_that_nvrtc_does_not_know_is_an_error_in_its_words(core_library):
    code, message = checked_in_a_child(core_library, "", nvrtc_path(), "fdt_nvrtc_compile", "sm_12")
    assert code == 1
    assert b"invalid value for --gpu-architecture" in message
