"""The operators' plans, sums and weights against the definition, without DALI, by the probe (tools/native_probe.py).

With FDT_PIPELINE_SANITIZE=1 the probe is built with AddressSanitizer and UBSan; then this process must be started with
LD_PRELOAD of their libraries (.ci/run does so). Every claim holds at every level of the instruction set that is here.
"""

import os
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdt_pipeline.definition.mixing import FDT, PLAIN, CutMix, Mix, MixUp, OneOf, is_led
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform, checked_weights
from fdt_pipeline.definition.superposition import NO_AUGMENT, Augment, Pool, epoch_order
from fdt_pipeline.native.arguments import series_argument
from fdt_pipeline.native.pool import NativePool
from tests.mixes import mixes
from tests.native_pools import defined_outputs
from tools.native_probe import SANITIZERS, Draw, ProbeOutput, build_probe, load_levels

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.compile]

FIELDS = ("offsets", "images", "classes", "dy", "dx", "flip", "weights", "boxes", "label_smoothing")
BOUND = 2e-6  # of images, in units of pixel / 256
PAPER = {1: (117.0,), 3: (122.0, 117.0, 104.0), 2: (122.0, 117.0), 4: (122.0, 117.0, 104.0, 90.0)}


@pytest.fixture(scope="module")
def cores(tmp_path_factory):
    """Level of the instruction set -> probe."""
    sanitize = os.environ.get("FDT_PIPELINE_SANITIZE") == "1"
    return load_levels(build_probe(SANITIZERS if sanitize else ()), tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def core(cores):
    """The machine's own."""
    return list(cores.values())[-1]


def assert_same_plans(cores, pool, *arguments, size=(1, 1)):
    """Whether plans are those of `plans.draw_plans` in every field; arguments: a Draw's."""
    draw = Draw(*arguments)
    expected = draw_plans(draw.seed, draw.epoch, draw.indices, pool, draw.mix, draw.augment, draw.leaders, size)
    for core in cores:
        pixels = np.zeros((len(pool), *size, 1), np.uint8)
        got = core.draw_plans(core.pool(pixels, pool.labels, pool.num_classes, 0), draw)
        for name in FIELDS:
            assert np.array_equal(getattr(got, name), getattr(expected, name)), name


def random_labels(n, num_classes, seed=0):
    """i64[n]: unbalanced, some classes without an image."""
    odds = np.random.default_rng(seed).exponential(size=num_classes) ** 2
    return np.random.default_rng(seed + 1).choice(num_classes, n, p=odds / odds.sum())


@pytest.mark.parametrize(
    ("num_classes", "n", "num_plans", "fdt"),
    [
        (2, 9, 20_000, FDT()),
        (7, 100, 20_000, FDT(probability=0.3)),
        (10, 5_000, 40_000, FDT()),
        (16, 400, 5_000, FDT(min_images=3, max_images=11)),
        (17, 400, 5_000, FDT(anchor="epoch")),
        (33, 1_000, 5_000, FDT(min_images=33)),
        (100, 5_000, 4_000, FDT()),
        (128, 1_000, 1_000, FDT(probability=0.9, min_images=64)),
        (129, 1_000, 1_000, FDT(anchor="epoch", max_images=120)),
        (1_000, 1_000, 40, FDT()),
        (5_000, 20_000, 4, FDT(anchor="epoch")),
        (65_536, 100_000, 4, FDT(min_images=200, max_images=300)),
        (20_000, 20_000, 1, FDT(min_images=20_000)),
    ],
)
def test_plans_are_the_definitions_bit_for_bit_for_any_number_of_classes(cores, num_classes, n, num_plans, fdt):
    pool = Pool(random_labels(n, num_classes), num_classes)
    leaders = np.arange(num_plans) * 7 % n if fdt.anchor == "epoch" else None
    assert_same_plans(cores.values(), pool, 3, 1, np.arange(num_plans), fdt, Augment(), leaders)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 19), min_size=1, max_size=60),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    mixes(20),
    st.builds(Augment, pad=st.integers(0, 300), flip=st.booleans()),
    st.sampled_from([20, 21, 64, 127, 200, 2_000]),
    st.sampled_from([(1, 1), (32, 32), (7, 224)]),
)
def test_plans_are_the_definitions_bit_for_bit_for_any_options(
    core, seed, epoch, labels, indices, mix, augment, num_classes, size
):
    pool = Pool(labels, num_classes)
    leaders = np.array(indices) % len(pool) if is_led(mix) else None
    assert_same_plans([core], pool, seed, epoch, indices, mix, augment, leaders, size=size)


@dataclass(frozen=True)
class Case:
    """A pool of random images, and what outputs 0.. of epoch 2 must be."""

    shape: tuple[int, int, int]
    mix: Mix = FDT()  # noqa: RUF009 (it is frozen)
    augment: Augment = NO_AUGMENT
    num_classes: int = 10
    n: int = 40
    num_outputs: int = 12

    def pool(self):
        labels = np.arange(self.n) % self.num_classes
        return np.random.default_rng(0).integers(0, 256, (self.n, *self.shape), np.uint8), labels

    def draw(self):
        indices = np.arange(self.num_outputs)
        leaders = indices * 3 % self.n if is_led(self.mix) else None
        return Draw(7, 2, indices, self.mix, self.augment, leaders)

    def expected(self, mean):
        """f64[num_outputs h w c] and f32[num_outputs num_classes]"""
        images, labels = self.pool()
        return defined_outputs(images, Pool(labels, self.num_classes), self.draw(), mean)

    def run(self, core, output):
        images, labels = self.pool()
        native = core.pool(images, labels, self.num_classes, self.augment.pad)
        return core.superpose(native, self.draw(), output)[:2]


SHAPES = [(28, 28, 1), (33, 17, 3), (64, 64, 3), (1, 1, 1), (5, 3, 4), (9, 31, 2), (2, 130, 1), (224, 224, 3)]


AUGMENTS = [NO_AUGMENT, Augment(4), Augment(1, flip=False), Augment(0), Augment(300)]
CASES = [Case(s, augment=a, num_outputs=3 if s[0] == 224 else 12) for s in SHAPES for a in AUGMENTS]
CASES += [
    Case((12, 11, 3), fdt, Augment(3), num_outputs=60)
    for fdt in (
        FDT(min_images=2, max_images=3, series=Power(2), anchor="epoch"),
        FDT(probability=0.5, targets="dominant"),
        FDT(series=Geometric(0.7), min_images=10),
        FDT(series=Uniform()),
        PLAIN,
        FDT(unique_classes=False, label_smoothing=0.1),
        MixUp(0.3),
        MixUp(1, targets="dominant", label_smoothing=0.2),
        CutMix(1, anchor="random", unique_classes=True),
        OneOf({FDT(): 0.25, MixUp(0.8): 0.25, CutMix(1.0, label_smoothing=0.1): 0.25, None: 0.25}),
    )
]
CASES += [Case(s, CutMix(1), a, num_outputs=4 if s[0] == 224 else 30) for s in SHAPES for a in AUGMENTS]
CASES += [  # long sums: roundings of 5,000 in a row would be over the bound
    Case((3, 5, 1), FDT(min_images=5_000, series=series), Augment(1), 5_000, 6_000, num_outputs=2)
    for series in (Harmonic(), Uniform())
]


@pytest.mark.parametrize("case", CASES)
def test_images_are_within_the_bound_of_the_definition_and_targets_equal(cores, case):
    channels = case.shape[2]
    images, targets = case.expected(PAPER[channels])
    for core in cores.values():
        output = ProbeOutput(PAPER[channels], (256.0,) * channels, targets=case.mix.targets)
        got, got_targets = case.run(core, output)
        assert np.abs(got - images.transpose(0, 3, 1, 2)).max() < BOUND
        assert np.array_equal(got_targets, targets)


@pytest.mark.parametrize("shape", SHAPES)
def test_float16_is_float32_rounded_to_nearest_even_and_hwc_is_chw_transposed(cores, shape):
    case, mean, std = Case(shape, augment=Augment(2), num_outputs=4), PAPER[shape[2]], (60.0,) * shape[2]
    for core in cores.values():
        images = case.run(core, ProbeOutput(mean, std))[0]
        half = case.run(core, ProbeOutput(mean, std, half=True))[0]
        last = case.run(core, ProbeOutput(mean, std, channels_last=True))[0]
        half_last = case.run(core, ProbeOutput(mean, std, half=True, channels_last=True))[0]
        assert np.array_equal(half, images.astype(np.float16))
        assert np.array_equal(last, images.transpose(0, 2, 3, 1))
        assert np.array_equal(half_last, images.astype(np.float16).transpose(0, 2, 3, 1))


def test_float16_is_rounded_right_where_it_ties_overflows_or_is_subnormal(cores):
    """One image an output: pixel / std - mean / std runs through ties, infinities and numbers below 6e-5."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1)
    for mean, std in [(0, 2048), (0.5, 2**-10), (128, 2**-9), (3, 2**22), (0, 2**24), (0, 2**25), (1, 3 * 2**22)]:
        for core in cores.values():
            pool = core.pool(images, [0], 2, 0)
            single, half = (
                core.superpose(pool, Draw(0, 0, [0], PLAIN, leaders=[0]), ProbeOutput((mean,), (std,), half))[0]
                for half in (False, True)
            )
            with np.errstate(over="ignore"):
                assert np.array_equal(half, single.astype(np.float16)), (mean, std)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_gray_images_are_repeated_with_each_channels_own_mean_and_scale(cores, channels):
    case = Case((7, 9, 1), augment=Augment(2))
    mean, std = PAPER[channels], (256.0, 64.0, 100.0, 3.0)[:channels]
    for core in cores.values():
        images = case.run(core, ProbeOutput(mean, std))[0]
        last = case.run(core, ProbeOutput(mean, std, channels_last=True))[0]
        assert np.array_equal(last, images.transpose(0, 2, 3, 1))
        for i in range(channels):
            assert np.array_equal(images[:, i], case.run(core, ProbeOutput(mean[i : i + 1], std[i : i + 1]))[0][:, 0])


def test_pixels_that_are_their_class_come_out_as_the_target_where_classes_repeat(cores):
    """Image of class c: 255 at pixel c, zero elsewhere, so that a mixed image reads as its target (law 4)."""
    labels = random_labels(500, 37)
    images = (255 * np.eye(37, dtype=np.uint8)[labels])[:, None, :, None]
    output = ProbeOutput((0.0,), (255.0,))
    for core in cores.values():
        got, targets, _ = core.superpose(core.pool(images, labels, 37, 0), Draw(1, 0, np.arange(300)), output)
        assert np.abs(got[:, 0, 0] - targets).max() < 1e-6
        assert np.abs(targets.sum(1) - 1).max() < 1e-6
        assert len(np.unique(labels)) < len(labels)


@dataclass(frozen=True)
class Halving:
    """A series without terms: 1/2, 1/4, .., and the last one twice."""

    def weights(self, k):
        return 0.5 ** np.minimum(np.arange(1, k + 1), max(k - 1, 0))


@pytest.mark.parametrize("series", [Harmonic(), Power(0.3), Power(2.8), Geometric(0.9), Uniform(), Halving()])
def test_weights_are_the_series_own_to_the_last_bit(core, series):
    expected = np.concatenate([checked_weights(series, k).astype(np.float32) for k in range(1, 1001)])
    assert np.array_equal(core.weights(series_argument(series, 1_000), 1_000), expected)
    if series == Harmonic():
        assert np.array_equal(core.weights("harmonic", 1_000), expected)


def test_a_series_without_terms_goes_up_to_2048_images(core):
    assert len(core.weights(series_argument(Halving(), 2_048), 2_048)) == 2_048 * 2_049 // 2
    with pytest.raises(
        ValueError, match=r"no terms\(k\), .* up to 2048 images, got 2049: set max_images=2048, or give"
    ):
        series_argument(Halving(), 2_049)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", 'series must be "harmonic", or what native/arguments.py makes of one, got ""'),
        ("linear" * 1_000, 'got "linearlinearlinearlinearlinearlinearline..'),
        ("terms:", "needs terms and sums"),
        ("terms:" + "0" * 16 + ":" + "0" * 15, "cut in the middle of a number"),
        ("table:0000803F", "expected hexadecimal digits"),
        ("table:0000803", "cut in the middle of a number"),
        (series_argument(Harmonic(), 2), "up to 2 images, but up to 3 are superposed: make it for that number"),
        (series_argument(Halving(), 2), "up to 2 images, but up to 3 are superposed"),
        ("table:" + np.full(6, np.nan, np.float32).tobytes().hex(), "weights must be finite, 0 or more"),
        ("table:" + np.full(6, -1, np.float32).tobytes().hex(), "weights must be finite, 0 or more"),
        (f"terms:{np.ones(3).tobytes().hex()}:{np.zeros(3).tobytes().hex()}", "sums must be finite, above 0"),
        (f"terms:{np.ones(3).tobytes().hex()}:{np.full(3, np.inf).tobytes().hex()}", "finite"),
    ],
)
def test_text_that_is_no_series_is_refused(core, text, match):
    with pytest.raises(ValueError, match=match):
        core.weights(text, 3)


@pytest.mark.parametrize(("seed", "epoch", "n"), [(0, 0, 1), (5, 7, 3), (2**64 - 1, 2**32 - 1, 10_000), (1, 2, 1_001)])
def test_the_order_of_an_epoch_is_the_definitions(core, seed, epoch, n):
    assert np.array_equal(core.epoch_order(seed, epoch, n), epoch_order(seed, epoch, n))


def test_what_a_pool_cannot_hold_is_refused(core):
    def begin(n, shape):
        return NativePool.begin(n, shape, 0, library=core.library)

    with pytest.raises(ValueError, match="the pool is empty: expected one image or more"):
        begin(0, (2, 2, 1))
    for shape in [(0, 2, 1), (2, 0, 1), (2, 2, 0), (2, 2, 5)]:
        with pytest.raises(ValueError, match=r"images must be \[h w c\] with 1 to 4 channels"):
            begin(1, shape)
    with pytest.raises(ValueError, match="out of memory"):
        begin(2**40, (224, 224, 3))
    pool = begin(3, (2, 2, 1))
    for first, shape in [(0, (1, 2, 3, 1)), (2, (2, 2, 2, 1)), (-1, (1, 2, 2, 1))]:
        with pytest.raises(ValueError, match=r"expected u8\[m h w c\] of \(3, 2, 2, 1\), got uint8"):
            pool.set_images(first, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="expected a label for each of 3 images, got 2"):
        pool.finish(Pool([0, 1], 2))
    pool.finish(Pool([0, 1, 0], 2), "of three")
    with pytest.raises(ValueError, match='this process has a pool "of three" already: close it, or choose another'):
        begin(3, (2, 2, 1)).finish(Pool([0, 1, 0], 2), "of three")
    pool.close()
    begin(3, (2, 2, 1)).finish(Pool([0, 1, 0], 2), "of three")
