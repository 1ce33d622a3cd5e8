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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp, OneOf, is_led
from fdt_pipeline.definition.series import Geometric, Power
from fdt_pipeline.definition.superposition import NO_AUGMENT, Augment, Pool
from fdt_pipeline.loader.engines import NativeResident, NativeStreaming
from fdt_pipeline.loader.memory import load_pool
from fdt_pipeline.loader.options import Mixing, Output
from fdt_pipeline.loader.running import DaliOptions
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.load import nvrtc_path
from fdt_pipeline.native.pool import NativePool, prepare_gpu
from fdt_pipeline.native.recipe import CSRC, find_compiler
from tests.mixes import mixes
from tests.native_pools import defined_outputs
from tools.native_probe import Draw, Probe, ProbeOutput, build_probe

pytestmark = pytest.mark.compile

EMULATION = Path(__file__).parents[1] / "native_emulation"
SEED, EPOCH = 0x0123456789ABCDEF, 7
MEAN, STD = (122.0, 117.0, 104.0, 90.0), 256.0
RESIDENT, WINDOW, SCATTERED_WINDOW = "resident", "window", "scattered window"


def output_of(channels=3, **options):
    return ProbeOutput(MEAN[:channels], (STD,) * channels, **options)


MIX, RGB = FDT(), output_of()
EACH = OneOf(  # of every kind, led or not, smoothed or not, with long sums in which classes repeat
    {
        FDT(): 0.2,
        FDT(unique_classes=False, min_images=20, max_images=40, label_smoothing=0.05): 0.2,
        MixUp(0.8, unique_classes=True, probability=0.9): 0.2,
        CutMix(1.0, label_smoothing=0.1): 0.3,
        None: 0.1,
    }
)


def draw_of(indices, mix=MIX, augment=NO_AUGMENT, leaders=None):
    return Draw(SEED, EPOCH, indices, mix, augment, leaders)


@dataclass
class Gpu:
    """The probe on a GPU, and the driver that stands in for CUDA's, or None on a real GPU."""

    probe: Probe
    driver: ctypes.CDLL | None = None

    def superpose(self, pixels, labels, draw, output=RGB, place=RESIDENT, batch_size=4096):
        """Images as [n h w channels] in float64, and targets."""
        if place == RESIDENT:
            pool = self.probe.pool(pixels, labels.labels, labels.num_classes, draw.augment.pad, device=0)
            images, targets, _ = self.probe.gpu_superpose(pool, draw, output, batch_size)
        else:
            scattered = place == SCATTERED_WINDOW
            images, targets, _ = self.probe.gpu_superpose_window(pixels, labels, draw, output, scattered, batch_size)
        return (images if output.channels_last else images.transpose(0, 2, 3, 1)).astype(np.float64), targets

    def counts(self):
        """Launches, allocations, synchronizations, pieces of memory that are not freed, bytes that were uploaded."""
        values = np.empty(5, np.int64)
        self.driver.emulation_counts(ctypes.c_void_p(values.ctypes.data))
        names = ("launches", "allocations", "synchronizations", "held", "uploaded")
        return dict(zip(names, map(int, values), strict=True))


def compile_driver(folder, *flags):
    """The stand-in for libcuda with the kernels in it."""
    library = folder / "driver.so"
    words = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    words += ["-Wno-unknown-pragmas", "-fno-strict-aliasing", *flags, f"-I{CSRC}", str(EMULATION / "driver.cc")]
    subprocess.run([*find_compiler(), *words, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def library():
    try:
        return build_probe()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def emulated(library, tmp_path_factory):
    driver = compile_driver(tmp_path_factory.mktemp("driver"))
    probe = Probe(ctypes.CDLL(str(library)))
    probe.set_driver(driver, driver)
    return Gpu(probe, ctypes.CDLL(str(driver)))


@pytest.fixture(scope="module", params=["emulated", *(["real"] if Path("/dev/nvidiactl").exists() else [])])
def gpu(request, library, tmp_path_factory):
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    copy = shutil.copy(library, tmp_path_factory.mktemp("real"))  # as a library loads its driver once
    probe = Probe(ctypes.CDLL(str(copy)))
    probe.set_driver("libcuda.so.1", nvrtc_path())
    return Gpu(probe)


def unbalanced(num_classes, rng):
    """Labels in which some classes are large, most are small, and every seventh is empty."""
    counts = rng.integers(1, 6, num_classes)
    counts[:: max(2, num_classes // 3)] *= 40
    counts[5::7] = 0
    return rng.permutation(np.repeat(np.arange(num_classes), counts))


def noise(n, shape, rng):
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8)


def expected_outputs(pixels, labels, draw, output=RGB):
    """By the definition, in float64: images [n h w channels], targets."""
    return defined_outputs(pixels, labels, draw, output.mean, STD, output.targets)


def assert_same_outputs(ours, theirs, half=False):
    """Images within 2e-6 in units of (pixel - mean) / 256, where a half has 11 bits; the same targets."""
    allowed = 2e-6 + (2.0**-11 * np.abs(theirs[0]) if half else 0)
    assert (np.abs(ours[0] - theirs[0]) <= allowed).all(), np.abs(ours[0] - theirs[0]).max()
    assert np.array_equal(ours[1], theirs[1])


def assert_definition(gpu, pixels, labels, draw, output=RGB):
    ours, theirs = gpu.superpose(pixels, labels, draw, output), expected_outputs(pixels, labels, draw, output)
    assert_same_outputs(ours, theirs, output.half)
    return ours


def leaders_of(mix, labels, number, rng):
    return rng.integers(0, len(labels), number) if is_led(mix) else None


PLANS = [  # number of classes, of outputs, FDT, Augment
    *((c, 600, FDT(), Augment(4)) for c in (2, 7, 10, 32, 33, 100)),
    *((c, 30, FDT(), Augment(4)) for c in (1000, 1024, 1025)),
    (5000, 6, FDT(), Augment(4)),
    *((c, 60, FDT(max_images=40), Augment(4)) for c in (32_800, 65_536)),
    *(
        (c, 150 if c < 1000 else 60, fdt, Augment(0, flip=False))
        for c in (10, 100, 2000)
        for fdt in (
            FDT(probability=0.5, min_images=3),
            FDT(min_images=9, max_images=9, series=Geometric(0.5)),
            FDT(min_images=8, max_images=10, anchor="epoch", series=Power(2.8)),
        )
    ),
]


@pytest.mark.parametrize(("num_classes", "number", "fdt", "augment"), PLANS)
def test_plans_equal_the_definition_bit_for_bit(gpu, num_classes, number, fdt, augment):
    """Targets say which classes are superposed in which order. The images are noise, so any other image, shift or
    flip changes an output by more than the bound, even with the smallest weight here (2e-5)."""
    rng = np.random.default_rng(num_classes)
    labels = Pool(unbalanced(num_classes, rng), num_classes)
    indices = np.concatenate([rng.integers(0, 2**32, number - 2), [2**31, 2**32 - 1]])
    leaders = leaders_of(fdt, labels, number, rng)
    pixels = noise(len(labels), (5, 4, 1), rng)
    assert_definition(gpu, pixels, labels, draw_of(indices, fdt, augment, leaders), output_of(1))


@settings(max_examples=80)
@given(
    mixes(20),
    st.sampled_from(["soft", "dominant", "label"]),
    st.sampled_from([1, 2, 7, 33, 300, 1100]),
    st.sampled_from([(5, 4, 1), (3, 9, 2), (6, 7, 3), (1, 1, 4)]),
    st.sampled_from([NO_AUGMENT, Augment(2)]),
    st.sampled_from([RESIDENT, WINDOW, SCATTERED_WINDOW]),
    st.integers(0, 2**32 - 7),
)
@example(EACH, "soft", 33, (6, 7, 3), Augment(2), SCATTERED_WINDOW, 0)
@example(MixUp(1, anchor="random"), "label", 7, (5, 4, 1), NO_AUGMENT, WINDOW, 0)  # labels, though nothing leads
def test_outputs_of_any_mixing_are_the_definitions(gpu, mix, targets, num_classes, shape, augment, place, first):
    """Also of pools of one class, where pairs of different classes are cut to one image."""
    rng = np.random.default_rng(first)
    labels, output = Pool(unbalanced(num_classes, rng), num_classes), output_of(shape[2], targets=targets)
    pixels = noise(len(labels), shape, rng)
    draw = draw_of(first + np.arange(7), mix, augment, leaders_of(mix, labels, 7, rng))
    found = gpu.superpose(pixels, labels, draw, output, place)
    assert_same_outputs(found, expected_outputs(pixels, labels, draw, output))


@pytest.mark.parametrize("k", [60, 300])
def test_weights_of_a_class_that_repeats_add_up_in_the_order_of_the_plan(gpu, k):
    """Of 3 classes, so in every piece of 8 images some are of one class; another order gives other last bits."""
    labels, pixels = Pool(np.arange(30) % 3, 3), noise(30, (5, 4, 1), np.random.default_rng(1))
    mix = FDT(min_images=k, max_images=k, series=Power(1.5), unique_classes=False, label_smoothing=0.1)
    assert_definition(gpu, pixels, labels, draw_of(np.arange(30), mix), output_of(1))


def test_outputs_of_a_pool_of_one_class_are_single_images(gpu):
    pixels = noise(8, (4, 4, 1), np.random.default_rng(0))
    _, targets = assert_definition(gpu, pixels, Pool([3] * 8, 10), draw_of(np.arange(20)), output_of(1))
    assert ((targets > 0).sum(1) == 1).all()


SHAPES = [(28, 28, 1), (33, 17, 3), (32, 32, 4), (9, 6, 2), (1, 1, 1), (5, 3, 3), (40, 300, 3), (224, 224, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("augment", [NO_AUGMENT, Augment(pad=1, flip=False), Augment(pad=5)], ids=["0", "1", "5 flip"])
def test_images_and_targets_equal_the_definition(gpu, shape, augment):
    rng = np.random.default_rng(len(shape))
    labels = Pool(unbalanced(10, rng), 10)
    draw = draw_of(np.arange(2 if shape[0] == 224 else 7), augment=augment)  # the large ones are of several tiles
    assert_definition(gpu, noise(len(labels), shape, rng), labels, draw, output_of(shape[2]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("augment", [NO_AUGMENT, Augment(pad=5)], ids=["0", "5 flip"])
def test_boxes_are_the_definitions_in_images_of_any_size(gpu, shape, augment):
    """The largest image is of 49 tiles, which all draw the box, and of which one writes the target."""
    rng = np.random.default_rng(len(shape))
    labels, number = Pool(unbalanced(10, rng), 10), 3 if shape[0] == 224 else 20
    mix = CutMix(1, label_smoothing=0.1)
    draw = draw_of(np.arange(number), mix, augment, leaders_of(mix, labels, number, rng))
    assert_definition(gpu, noise(len(labels), shape, rng), labels, draw, output_of(shape[2]))


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["chw", "hwc"])
@pytest.mark.parametrize(
    ("channels", "shape", "targets", "mix"),
    [
        (3, (12, 8, 3), "soft", FDT()),
        (3, (7, 5, 1), "dominant", MixUp(1, label_smoothing=0.1)),
        (4, (8, 8, 1), "label", CutMix(1)),
        (2, (5, 7, 2), "label", EACH),
    ],
)
def test_outputs_are_written_as_asked(gpu, channels, shape, targets, mix, channels_last, half):
    rng = np.random.default_rng(channels)
    labels = Pool(unbalanced(10, rng), 10)
    output = output_of(channels, half=half, channels_last=channels_last, targets=targets)
    draw = draw_of(np.arange(30), mix, Augment(2), leaders_of(mix, labels, 30, rng))
    assert_definition(gpu, noise(len(labels), shape, rng), labels, draw, output)


@pytest.mark.parametrize("k", [248, 255, 256, 257, 1000, 5000])
def test_sums_of_many_images_keep_the_bound(gpu, k):
    """In one go roundings would add up to 4e-6 in a sum of 5,000."""
    pixels, draw = noise(k, (40, 40, 1), np.random.default_rng(2)), draw_of([0], FDT(min_images=k), Augment(1))
    assert_definition(gpu, pixels, Pool(np.arange(k), k), draw, output_of(1))


@pytest.mark.parametrize("place", [RESIDENT, WINDOW, SCATTERED_WINDOW])
@pytest.mark.parametrize(
    ("targets", "mix"), [("soft", FDT(anchor="epoch")), ("label", FDT(anchor="epoch")), ("soft", EACH)]
)
def test_leaders_lead_wherever_images_lie(gpu, place, targets, mix):
    rng = np.random.default_rng(3)
    labels, output = Pool(unbalanced(50, rng), 50), output_of(targets=targets)
    pixels, leaders = noise(len(labels), (11, 7, 3), rng), rng.integers(0, len(labels), 90)
    draw = draw_of(np.arange(90) * 1000, mix, Augment(), leaders)
    found = gpu.superpose(pixels, labels, draw, output, place, batch_size=40)
    for window, resident in zip(found, gpu.superpose(pixels, labels, draw, output), strict=True):
        assert np.array_equal(window, resident)  # bit for bit
    assert_same_outputs(found, expected_outputs(pixels, labels, draw, output))


@pytest.mark.parametrize(
    ("mix", "targets"), [(FDT(), "soft"), (EACH, "soft"), (EACH, "dominant")], ids=["FDT", "each", "each dominant"]
)
def test_an_output_is_the_same_whatever_batch_it_is_in_and_in_whatever_order_threads_run(emulated, mix, targets):
    """The second: a barrier that is missing would show, as threads run from one to the next."""
    rng = np.random.default_rng(5)
    labels, indices = Pool(unbalanced(70, rng), 70), rng.integers(0, 1000, 40)
    draw = draw_of(indices, mix, Augment(), leaders_of(mix, labels, 40, rng))
    given = noise(len(labels), (16, 16, 3), rng), labels, draw, output_of(targets=targets)
    whole, pieces = emulated.superpose(*given), emulated.superpose(*given, batch_size=7)
    emulated.driver.emulation_run_backwards(1)
    try:
        backwards = emulated.superpose(*given)
    finally:
        emulated.driver.emulation_run_backwards(0)
    for expected, *others in zip(whole, pieces, backwards, strict=True):
        assert all(np.array_equal(other, expected) for other in others)


@pytest.mark.parametrize("place", [RESIDENT, SCATTERED_WINDOW])
def test_nothing_waits_or_allocates_from_batch_to_batch_and_all_memory_is_freed(emulated, place):
    """A batch is its launches: one, and those that carry what is not in parameters. The test itself allocates two."""
    labels, pixels = Pool(np.arange(30) % 10, 10), np.zeros((30, 4, 4, 1), np.uint8)

    def spent(num_batches):
        before, n = emulated.counts(), num_batches * 8
        draw = draw_of(np.arange(n), FDT(anchor="epoch"), leaders=np.zeros(n, np.int64))
        emulated.superpose(pixels, labels, draw, output_of(1), place, batch_size=8)
        return {name: after - before[name] for name, after in emulated.counts().items()}

    few, many = spent(2), spent(12)
    assert many["synchronizations"] == few["synchronizations"]
    assert many["held"] == 0
    assert many["allocations"] - few["allocations"] == 10 * 2
    assert many["launches"] == 12 * (2 if place == RESIDENT else 3)
    before = emulated.counts()["launches"]  # ids that follow each other are in the parameters
    emulated.superpose(pixels, labels, draw_of(np.arange(50)), output_of(1))
    assert emulated.counts()["launches"] - before == 1


@pytest.mark.parametrize("is_led", [False, True])
def test_a_batch_of_spans_is_what_single_ids_give_in_a_launch_for_16_of_them(emulated, is_led):
    """The order of an epoch is uploaded with its first batch alone, which is one more launch."""
    rng = np.random.default_rng(7)
    labels = Pool(unbalanced(10, rng), 10)
    pixels, order = noise(len(labels), (5, 4, 1), rng), rng.permutation(len(labels))
    spans = [(7 * i % len(labels), 6, len(labels)) for i in range(18)] + [(len(labels) - 2, 4, len(labels))]
    indices = np.concatenate([(first + np.arange(count)) % modulo for first, count, modulo in spans])
    draw = draw_of(indices, FDT(anchor="epoch" if is_led else "random"), Augment(1), order[indices] if is_led else None)
    pool = emulated.probe.pool(pixels, labels.labels, 10, 1, device=0)
    single = emulated.probe.gpu_superpose(pool, draw, output_of(1))
    before = emulated.counts()["launches"]
    grouped = replace(draw, leaders=None, spans=spans, order=order if is_led else None)
    found = emulated.probe.gpu_superpose(pool, grouped, output_of(1), repeats=3)
    assert emulated.counts()["launches"] - before == 3 * 3 + is_led
    for part, expected in zip(found[:2], single[:2], strict=True):
        assert np.array_equal(part, expected)


def test_a_pool_is_uploaded_once_and_freed_when_it_is_dropped(emulated):
    labels, pixels = Pool(np.arange(30) % 10, 10), np.zeros((30, 8, 8, 1), np.uint8)
    before = emulated.counts()
    pool = emulated.probe.pool(pixels, labels.labels, 10, 0, device=0)
    index_bytes = 4 * (2 * len(labels) + 10 + 1)
    assert emulated.counts()["uploaded"] - before["uploaded"] == pixels.nbytes + index_bytes
    uploaded = emulated.counts()["uploaded"]
    for _ in range(3):
        emulated.probe.gpu_superpose(pool, draw_of(np.arange(8)), output_of(1))
    assert emulated.counts()["uploaded"] - uploaded < pixels.nbytes  # the weights of each operator
    pool.close()
    assert emulated.counts()["held"] == before["held"]


def test_a_pool_on_a_gpu_is_never_on_the_host_as_well(emulated):
    """Memory of the emulated GPU is the host's, so the limit leaves room for one copy of the pool and a quarter."""
    block, num_blocks = np.ones((4096, 32, 32, 1), np.uint8), 64  # more than the heap keeps free

    def begin():
        return NativePool.begin(num_blocks * len(block), block.shape[1:], 0, 0, emulated.probe.library)

    with memory_limit(num_blocks * block.nbytes * 5 // 4):
        pool = begin()
        for number in range(num_blocks):
            pool.set_images(number * len(block), block)
        pool.finish(Pool(np.zeros(pool.shape[0], np.int64), 1))
        with pytest.raises(ValueError, match="out of memory"):
            begin()


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


def test_failures_of_the_driver_are_reported_in_its_words_and_leave_nothing_behind(emulated):
    held = emulated.counts()["held"]
    emulated.driver.emulation_limit_allocations(ctypes.c_longlong(1000))
    message = r"could not allocate 4096 bytes on the GPU: out of memory \(CUDA error 2\)"
    try:
        with pytest.raises(ValueError, match=message):
            emulated.superpose(np.zeros((4, 32, 32, 1), np.uint8), Pool(np.arange(4), 4), draw_of([0]), output_of(1))
    finally:
        emulated.driver.emulation_limit_allocations(ctypes.c_longlong(-1))
    assert emulated.counts()["held"] == held


def test_an_image_that_is_too_large_with_its_padding_is_refused(gpu):
    """Positions are 32-bit numbers there."""
    draw = draw_of([0], augment=Augment(32_767))
    with pytest.raises(ValueError, match=r"with its padding must have less than .* with pad 32767"):
        gpu.superpose(np.zeros((2, 4, 4, 3), np.uint8), Pool([0, 1], 2), draw)


CHILD = """
import ctypes, sys
import numpy as np
from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp, OneOf
from fdt_pipeline.definition.superposition import Augment, Pool
from tools.native_probe import Draw, Probe, ProbeOutput
library, driver, nvrtc, arch = sys.argv[1:]
probe = Probe(ctypes.CDLL(library))
probe.set_driver(driver, nvrtc)
try:
    if arch:
        sys.exit(0 if probe.compile_kernels(arch) > 0 else 2)
    for shape, last, half in [((9, 7, 3), True, False), ((5, 9, 1), False, True), ((16, 24, 4), False, False)]:
        pixels, labels = np.full((300, *shape), 7, np.uint8), Pool(np.arange(300) % 290, 290)
        mix = OneOf({FDT(): 0.4, MixUp(0.5): 0.2, CutMix(1.0, label_smoothing=0.1): 0.4})
        draw = Draw(1, 0, np.arange(20) * 3, mix, Augment(5), np.arange(20) * 15 + 14)
        output = ProbeOutput((0.0,) * shape[2], (1.0,) * shape[2], half, last)
        probe.gpu_superpose(probe.pool(pixels, labels.labels, 290, 5, 0), draw, output)
        for scattered in (False, True):
            probe.gpu_superpose_window(pixels, labels, draw, output, scattered)
except ValueError as error:
    sys.exit(str(error))
"""


def in_a_child(library, driver, nvrtc="", arch="", **environment):
    """(exit code, errors) of a process that superposes, or compiles for `arch`: libraries are loaded once a process."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(library), str(driver), str(nvrtc or driver), arch],
        capture_output=True, text=True, cwd=EMULATION.parents[1], env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    return child.returncode, child.stderr


@pytest.mark.process
def test_without_a_driver_or_nvrtc_the_error_says_what_is_missing(library, tmp_path):
    code, errors = in_a_child(library, tmp_path / "libcuda.so.1")
    assert code == 1
    assert errors.startswith("the GPU engine needs NVIDIA's driver, and libcuda.so.1 does not load:")
    code, errors = in_a_child(library, compile_driver(tmp_path), tmp_path / "libnvrtc.so.13")
    assert code == 1
    assert errors.startswith("the GPU engine needs NVRTC (pip install nvidia-cuda-nvrtc")


def test_where_the_driver_does_not_take_machine_code_it_is_given_ptx(library, tmp_path):
    """As where NVRTC is newer than the driver; if it takes neither, the error says what to install."""
    driver = compile_driver(tmp_path)
    copy = ctypes.CDLL(str(shutil.copy(library, tmp_path)))  # as kernels are loaded once
    Probe(copy).set_driver(driver, driver)
    refuse = ctypes.CDLL(str(driver)).emulation_refuse_code
    refuse(b"cubin")
    prepare_gpu(0, 3, 3, copy)
    refuse(b"cubin ptx")
    with pytest.raises(ValueError, match=r"could not load the GPU kernel .*NVRTC of the driver's CUDA version"):
        prepare_gpu(0, 1, 1, copy)


@pytest.mark.parametrize("make", [NativeResident, NativeStreaming])
def test_an_engine_for_a_gpu_is_not_made_where_its_kernel_cannot_be(numbered_shards, monkeypatch, make):
    """So that the error comes when the loader is built, not with the first batch."""

    def fail(device, stored, channels):
        assert (device, stored, channels) == (0, 3, 3)
        raise ValueError("the GPU engine needs NVRTC")

    monkeypatch.setattr("fdt_pipeline.loader.engines.prepare_gpu", fail)
    mixing, pool = Mixing(0, FDT(), NO_AUGMENT, 7, Output(MEAN[:3], (STD,) * 3, 3)), load_pool(numbered_shards)
    first = pool if make is NativeResident else 64
    more = (16, DaliOptions(1, 1, 0), False) if make is NativeResident else (32, 16, 3, DaliOptions(1, 1, 0))
    with pytest.raises(ValueError, match="needs NVRTC"):
        make(mixing, torch.device("cuda", 0), first, *more)


def test_nothing_outside_of_an_array_is_read_or_written(library, tmp_path):
    """Under AddressSanitizer and UBSan, with device memory in pieces that end where they were asked to."""
    driver = compile_driver(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    runtime = [subprocess.run([*find_compiler(), f"-print-file-name={name}"], capture_output=True, check=True,
                              text=True).stdout.strip() for name in ("libasan.so", "libubsan.so")]  # fmt: skip
    sanitized = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    assert in_a_child(library, driver, **sanitized) == (0, "")


def known_to(nvrtc):
    """Architectures that this NVRTC compiles for, as numbers such as 90."""
    library, count = ctypes.CDLL(nvrtc), ctypes.c_int()
    assert library.nvrtcGetNumSupportedArchs(ctypes.byref(count)) == 0
    found = (ctypes.c_int * count.value)()
    assert library.nvrtcGetSupportedArchs(found) == 0
    return set(found)


@pytest.mark.skipif(nvrtc_path() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120", "compute_90", "sm_12"])
def test_nvrtc_compiles_the_kernels_or_says_why_not(library, arch):
    code, errors = in_a_child(library, "", nvrtc_path(), arch)
    unknown = int(arch.partition("_")[2]) not in known_to(nvrtc_path())
    assert code == unknown, errors
    assert ("invalid value for --gpu-architecture" in errors) == unknown
