"""The native core against the definition, without DALI: plans, sums, weights, and the reader of raw shards.

With FDT_PIPELINE_SANITIZE=1 it is the core under AddressSanitizer and UBSan; then this process must be started with
LD_PRELOAD of their libraries (.ci/run does so). Every claim holds at every level of the instruction set that is here.
"""

import ctypes
import json
import os
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fdt_pipeline.definition.philox import Stream, bounded64, random_words
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform, checked_weights
from fdt_pipeline.definition.superposition import (
    FDT,
    NO_AUGMENT,
    PLAIN,
    Augment,
    Pool,
    epoch_order,
    standardize,
    superpose_images,
)
from fdt_pipeline.native.core import Core, CoreOutput
from fdt_pipeline.native.library import build_core
from fdt_pipeline.native.series import series_argument
from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import ArraySource
from tests.numbered import LABELS, numbered_images

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.compile]

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
FIELDS = ("offsets", "images", "classes", "dy", "dx", "flip", "weights")
BOUND = 2e-6  # of images, in units of pixel / 256
SIGNIFICANCE = 1e-4  # with fixed seeds: a law that holds fails never, a wrong one practically always
PAPER = {1: (117.0,), 3: (122.0, 117.0, 104.0), 2: (122.0, 117.0), 4: (122.0, 117.0, 104.0, 90.0)}
PIXEL = np.ones((1, 1, 1, 1), np.uint8)


@pytest.fixture(scope="module")
def cores(tmp_path_factory):
    """Level -> core. The choice is made once a loaded library, so each level has a copy of its own."""
    library = build_core(SANITIZERS if os.environ.get("FDT_PIPELINE_SANITIZE") == "1" else ())
    found = {}
    for level in ("v2", "v3", "v4"):
        copy = shutil.copy(library, tmp_path_factory.mktemp("core") / f"{level}.so")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FDT_PIPELINE_ISA", level)
            core = Core(ctypes.CDLL(str(copy)))
            try:
                assert core.isa == level
            except ValueError:  # this machine lacks it
                continue
        found[level] = core
    return found


@pytest.fixture(scope="module")
def core(cores):
    """The machine's own."""
    return list(cores.values())[-1]


def same_plans(core, pool, *arguments, pad=0):
    """Whether the native plans of `plans.draw_plans(seed, epoch, indices, pool, ...)` are these, in every field."""
    expected = draw_plans(*arguments[:3], pool, *arguments[3:])
    native = core.pool(np.broadcast_to(PIXEL, (len(pool), 1, 1, 1)), pool.labels, pool.num_classes, pad)
    got = core.draw_plans(native, *arguments)
    return all(np.array_equal(getattr(got, name), getattr(expected, name)) for name in FIELDS)


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
    ],
)
def test_plans_are_the_definitions_bit_for_bit_for_any_number_of_classes(cores, num_classes, n, num_plans, fdt):
    pool = Pool(random_labels(n, num_classes), num_classes)
    leaders = np.arange(num_plans) * 7 % n if fdt.anchor == "epoch" else None
    for core in cores.values():
        assert same_plans(core, pool, 3, 1, np.arange(num_plans), fdt, Augment(), leaders, pad=4)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 19), min_size=1, max_size=60),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    st.builds(
        FDT,
        min_images=st.integers(1, 20),
        max_images=st.sampled_from([None, 20]),
        probability=st.floats(0, 1),
        series=st.sampled_from([Harmonic(), Power(2), Geometric(0.5), Uniform()]),
        anchor=st.sampled_from(["random", "epoch"]),
    ),
    st.builds(Augment, pad=st.integers(0, 300), flip=st.booleans()),
    st.sampled_from([20, 21, 64, 127, 200, 2_000]),
)
def test_plans_are_the_definitions_bit_for_bit_for_any_options(
    core, seed, epoch, labels, indices, fdt, augment, num_classes
):
    pool = Pool(labels, num_classes)
    leaders = np.array(indices) % len(pool) if fdt.anchor == "epoch" else None
    assert same_plans(core, pool, seed, epoch, indices, fdt, augment, leaders, pad=augment.pad)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**63, 1), (2**64 - 1, 2**32 - 1)])
def test_plans_are_the_definitions_at_the_ends_of_seeds_epochs_and_indices(cores, seed, epoch):
    pool = Pool(random_labels(300, 40), 40)
    for core in cores.values():
        assert same_plans(core, pool, seed, epoch, [0, 1, 2**31, 2**32 - 1], FDT(), Augment(16), pad=16)


class UnusedCounts:
    """Counts under which a rank's class is found in log(n) steps (a Fenwick tree): for plans of 65,536 images."""

    def __init__(self, counts):
        self.tree, self.size = [0, *map(int, counts)], len(counts)
        for i in range(1, self.size + 1):
            if (above := i + (i & -i)) <= self.size:
                self.tree[above] += self.tree[i]

    def find(self, rank):
        """(class, rank within it)"""
        at = 0
        for step in (1 << bit for bit in reversed(range(self.size.bit_length()))):
            if at + step <= self.size and self.tree[at + step] <= rank:
                at += step
                rank -= self.tree[at]
        return at, rank

    def take(self, label, count):
        at = label + 1
        while at <= self.size:
            self.tree[at] -= count
            at += at & -at


def long_plan(seed, index, pool, k):
    """The images of a plan that has k of them."""
    words = random_words(seed, Stream.PLAN, 0, index, np.arange(1, k + 1))
    unused, left, images = UnusedCounts(pool.counts), len(pool), []
    for high, low in words[:, :2]:
        label, rank = unused.find(int(bounded64(high, low, left)))
        images.append(pool.by_class[pool.starts[label] + rank])
        unused.take(label, int(pool.counts[label]))
        left -= pool.counts[label]
    return np.array(images)


@pytest.mark.parametrize("num_classes", [30, 65_536])
def test_a_plan_of_all_classes_is_the_definitions(core, num_classes):
    pool, fdt = Pool(np.arange(2 * num_classes) * 7 % num_classes, num_classes), FDT(min_images=num_classes)
    native = core.pool(np.broadcast_to(PIXEL, (len(pool), 1, 1, 1)), pool.labels, num_classes, 0)
    plans = core.draw_plans(native, 5, 0, [11], fdt)
    expected = long_plan(5, 11, pool, num_classes)
    assert np.array_equal(plans.images, expected)
    assert np.array_equal(np.sort(plans.classes), np.arange(num_classes))
    if num_classes == 30:
        assert np.array_equal(draw_plans(5, 0, [11], pool, fdt).images, expected)


@dataclass(frozen=True)
class Case:
    """A pool of random images, and what outputs 0.. of epoch 2 must be."""

    shape: tuple[int, int, int]
    fdt: FDT = FDT()  # noqa: RUF009 (it is frozen)
    augment: Augment = NO_AUGMENT
    num_classes: int = 10
    n: int = 40
    num_outputs: int = 12

    def pool(self):
        labels = np.arange(self.n) % self.num_classes
        return np.random.default_rng(0).integers(0, 256, (self.n, *self.shape), np.uint8), labels

    def leaders(self):
        return np.arange(self.num_outputs) * 3 % self.n if self.fdt.anchor == "epoch" else None

    def expected(self, mean):
        """f64[num_outputs h w c] and f32[num_outputs num_classes]"""
        images, labels = self.pool()
        pool = Pool(labels, self.num_classes)
        plans = draw_plans(7, 2, np.arange(self.num_outputs), pool, self.fdt, self.augment, self.leaders())
        weights = [checked_weights(self.fdt.series, len(plans[i].images)) for i in range(len(plans))]
        sums = [
            superpose_images(_with_weights(plans[i], weights[i]), images, self.augment.pad) for i in range(len(plans))
        ]
        return standardize(np.stack(sums), mean, 256), batch_targets(plans, self.num_classes, self.fdt.targets)

    def run(self, core, output, num_threads=1):
        images, labels = self.pool()
        native = core.pool(images, labels, self.num_classes, self.augment.pad)
        indices = np.arange(self.num_outputs)
        return core.superpose(
            native, 7, 2, indices, self.fdt, self.augment, output, self.leaders(), num_threads=num_threads
        )[:2]


def _with_weights(plan, weights):
    """Plans of a batch hold float32 weights; the bound is to the float64 ones."""
    return type(plan)(plan.images, plan.classes, weights, plan.dy, plan.dx, plan.flip)


SHAPES = [(28, 28, 1), (33, 17, 3), (64, 64, 3), (1, 1, 1), (5, 3, 4), (9, 31, 2), (2, 130, 1), (224, 224, 3)]


@pytest.mark.parametrize("augment", [NO_AUGMENT, Augment(4), Augment(1, flip=False), Augment(0), Augment(300)])
@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_within_the_bound_of_the_definition_and_targets_equal(cores, shape, augment):
    case = Case(shape, augment=augment, num_outputs=3 if shape[0] == 224 else 12)
    mean = PAPER[shape[2]]
    images, targets = case.expected(mean)
    for core in cores.values():
        got, got_targets = case.run(core, CoreOutput(mean, (256.0,) * shape[2]))
        assert np.abs(got - images.transpose(0, 3, 1, 2)).max() < BOUND
        assert np.array_equal(got_targets, targets)


@pytest.mark.parametrize(
    "fdt",
    [
        FDT(min_images=2, max_images=3, series=Power(2), anchor="epoch"),
        FDT(probability=0.5, targets="dominant"),
        FDT(series=Geometric(0.7), min_images=10),
        FDT(series=Uniform()),
        PLAIN,
    ],
)
def test_every_option_of_the_mixing_is_the_definitions(cores, fdt):
    case = Case((12, 11, 3), fdt, Augment(3), num_outputs=60)
    images, targets = case.expected(PAPER[3])
    for core in cores.values():
        got, got_targets = case.run(core, CoreOutput(PAPER[3], (256.0,) * 3, targets=fdt.targets))
        assert np.abs(got - images.transpose(0, 3, 1, 2)).max() < BOUND
        assert np.array_equal(got_targets, targets)


@pytest.mark.parametrize("series", [Harmonic(), Uniform()])
def test_sums_of_5000_images_keep_the_bound(cores, series):
    case = Case((3, 5, 1), FDT(min_images=5_000, series=series), Augment(1), 5_000, 6_000, num_outputs=2)
    images, targets = case.expected(PAPER[1])
    for core in cores.values():
        got, got_targets = case.run(core, CoreOutput(PAPER[1], (256.0,)))
        assert np.abs(got - images.transpose(0, 3, 1, 2)).max() < BOUND
        assert np.array_equal(got_targets, targets)


def test_levels_of_the_instruction_set_are_within_the_bound_of_each_other(cores):
    case = Case((32, 32, 3), FDT(min_images=40), Augment(4), 100, 300, num_outputs=50)
    outputs = [case.run(core, CoreOutput(PAPER[3], (256.0,) * 3)) for core in cores.values()]
    for images, targets in outputs[1:]:
        assert np.abs(images - outputs[0][0]).max() < BOUND
        assert np.array_equal(targets, outputs[0][1])


@pytest.mark.parametrize("shape", SHAPES)
def test_float16_is_float32_rounded_to_nearest_even_and_hwc_is_chw_transposed(cores, shape):
    case, mean, std = Case(shape, augment=Augment(2), num_outputs=4), PAPER[shape[2]], (60.0,) * shape[2]
    for core in cores.values():
        images = case.run(core, CoreOutput(mean, std))[0]
        half = case.run(core, CoreOutput(mean, std, half=True))[0]
        last = case.run(core, CoreOutput(mean, std, channels_last=True))[0]
        half_last = case.run(core, CoreOutput(mean, std, half=True, channels_last=True))[0]
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
                core.superpose(pool, 0, 0, [0], PLAIN, NO_AUGMENT, CoreOutput((mean,), (std,), half), leaders=[0])[0]
                for half in (False, True)
            )
            with np.errstate(over="ignore"):
                assert np.array_equal(half, single.astype(np.float16)), (mean, std)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_gray_images_are_repeated_with_each_channels_own_mean_and_scale(cores, channels):
    case = Case((7, 9, 1), augment=Augment(2))
    mean, std = PAPER[channels], (256.0, 64.0, 100.0, 3.0)[:channels]
    for core in cores.values():
        images = case.run(core, CoreOutput(mean, std))[0]
        last = case.run(core, CoreOutput(mean, std, channels_last=True))[0]
        assert np.array_equal(last, images.transpose(0, 2, 3, 1))
        for i in range(channels):
            assert np.array_equal(images[:, i], case.run(core, CoreOutput(mean[i : i + 1], std[i : i + 1]))[0][:, 0])


def test_outputs_do_not_depend_on_threads_or_on_the_others_of_their_batch(core):
    case, output = Case((8, 8, 3), augment=Augment(), num_outputs=41), CoreOutput(PAPER[3], (256.0,) * 3)
    one, three = case.run(core, output), case.run(core, output, num_threads=3)
    assert np.array_equal(one[0], three[0])
    assert np.array_equal(one[1], three[1])
    images, labels = case.pool()
    pool = core.pool(images, labels, 10, 4)
    for i in (40, 0, 17):
        alone = core.superpose(pool, 7, 2, [i], FDT(), Augment(), output)
        assert np.array_equal(alone[0][0], one[0][i])


def test_negative_indices_are_padding_of_zeros(core):
    images, labels = Case((4, 4, 1)).pool()
    pool, output = core.pool(images, labels, 10, 0), CoreOutput((117.0,), (256.0,))
    got, targets, _ = core.superpose(pool, 0, 0, [-1, 5, -1], FDT(), NO_AUGMENT, output)
    assert not got[[0, 2]].any()
    assert not targets[[0, 2]].any()
    assert np.array_equal(got[1], core.superpose(pool, 0, 0, [5], FDT(), NO_AUGMENT, output)[0][0])
    labels_only = CoreOutput((117.0,), (256.0,), targets="label")
    assert core.superpose(pool, 0, 0, [-1, 5], FDT(), NO_AUGMENT, labels_only)[1][0] == -1


def test_pixels_that_are_their_class_come_out_as_the_target_where_classes_repeat(cores):
    """Image of class c: 255 at pixel c, zero elsewhere, so that a mixed image reads as its target (law 4)."""
    labels = random_labels(500, 37)
    images = (255 * np.eye(37, dtype=np.uint8)[labels])[:, None, :, None]
    output = CoreOutput((0.0,), (255.0,))
    for core in cores.values():
        got, targets, _ = core.superpose(
            core.pool(images, labels, 37, 0), 1, 0, np.arange(300), FDT(), NO_AUGMENT, output
        )
        assert np.abs(got[:, 0, 0] - targets).max() < 1e-6
        assert np.abs(targets.sum(1) - 1).max() < 1e-6
        assert len(np.unique(labels)) < len(labels)


def test_channels_that_are_their_class_come_out_as_the_target_inside_of_the_padding(cores):
    """The same with shifts and flips: flat images, with 255 in the channel of their class."""
    labels = np.repeat([0, 1, 2, 3], [50, 30, 5, 1])
    images = np.broadcast_to((255 * np.eye(4, dtype=np.uint8)[labels])[:, None, None], (86, 12, 12, 4))
    output = CoreOutput((0.0,) * 4, (255.0,) * 4)
    for core in cores.values():
        pool = core.pool(images, labels, 4, 3)
        got, targets, _ = core.superpose(pool, 1, 0, np.arange(200), FDT(), Augment(3), output)
        assert np.abs(got[:, :, 3:9, 3:9] - targets[:, :, None, None]).max() < 1e-6


def test_the_dominant_class_is_the_brightest_and_a_label_is_its_number(core):
    labels = random_labels(500, 37)
    images = (255 * np.eye(37, dtype=np.uint8)[labels])[:, None, :, None]
    pool, indices = core.pool(images, labels, 37, 0), np.arange(200)
    soft, dominant, label = (
        core.superpose(pool, 1, 0, indices, FDT(), NO_AUGMENT, CoreOutput((0.0,), (255.0,), targets=targets))
        for targets in ("soft", "dominant", "label")
    )
    assert np.array_equal(dominant[1], np.eye(37, dtype=np.float32)[soft[0][:, 0, 0].argmax(1)])
    assert np.array_equal(label[1], dominant[1].argmax(1))


def test_every_constituent_has_a_shift_and_a_flip_of_its_own(core):
    pool = core.pool(np.broadcast_to(PIXEL, (100, 1, 1, 1)), np.arange(100), 100, 4)
    plans = core.draw_plans(pool, 0, 0, np.arange(2_000), FDT(min_images=2), Augment(4))
    several = [len({*zip(plan.dy, plan.dx, plan.flip, strict=True)}) > 1 for plan in (plans[i] for i in range(2_000))]
    assert np.mean(several) > 0.97  # of pairs 1/162 agree in all three
    for values, kinds in ((plans.dy, 9), (plans.dx, 9), (plans.flip, 2)):
        assert stats.chisquare(np.bincount(values, minlength=kinds)).pvalue > SIGNIFICANCE


def test_plans_follow_the_papers_law_on_an_unbalanced_set(core):
    """K is uniform, the first image too, and the second among the images of other classes."""
    labels = np.repeat([0, 1, 2, 3, 5], [40, 25, 10, 4, 1])  # class 4 has none
    n, number = len(labels), 100_000
    pool = core.pool(np.broadcast_to(PIXEL, (n, 1, 1, 1)), labels, 6, 0)
    plans = core.draw_plans(pool, 21, 0, np.arange(number), FDT())
    num_images = plans.num_images()
    assert stats.chisquare(np.bincount(num_images, minlength=6)[1:]).pvalue > SIGNIFICANCE
    first = plans.images[plans.offsets[:-1]]
    assert stats.chisquare(np.bincount(first, minlength=n)).pvalue > SIGNIFICANCE
    second = plans.images[plans.offsets[:-1][num_images > 1] + 1]
    others = labels[:, None] != labels
    chance = (others / others.sum(1, keepdims=True)).mean(0)
    assert stats.chisquare(np.bincount(second, minlength=n), chance * len(second)).pvalue > SIGNIFICANCE
    last = plans.classes[plans.offsets[1:][num_images == 5] - 1]
    assert np.bincount(last)[0] < np.bincount(last)[5]  # large classes are taken early


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
        ("", 'series must be "harmonic", or what .*series_argument returns, got ""'),
        ("Harmonic", 'got "Harmonic"'),
        ("linear" * 1_000, 'got "linearlinearlinearlinearlinearlinearline"$'),
        ("terms:", "needs terms and sums"),
        ("terms::", "weights for sums of up to 0 images, but up to 3 are superposed"),
        ("terms:" + "0" * 16 + ":" + "0" * 15, "cut in the middle of a number"),
        ("table:xyz!", "expected hexadecimal digits"),
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


def test_an_instruction_set_that_is_not_here_is_an_error_of_whatever_needs_it_first(cores, tmp_path, monkeypatch):
    copy = shutil.copy(next(iter(cores.values())).library._name, tmp_path / "core.so")
    core = Core(ctypes.CDLL(str(copy)))
    monkeypatch.setenv("FDT_PIPELINE_ISA", "avx2")
    expected = f'FDT_PIPELINE_ISA must be one of {", ".join(cores)} .*, got "avx2": unset it'
    with pytest.raises(ValueError, match=expected):
        core.pool(np.zeros((2, 4, 4, 1), np.uint8), [0, 1], 2, 0)
    with pytest.raises(ValueError, match=expected):
        _ = core.isa
    monkeypatch.delenv("FDT_PIPELINE_ISA")
    assert core.isa == list(cores)[-1]


@pytest.mark.skipif(os.environ.get("FDT_PIPELINE_SANITIZE") == "1", reason="the sanitizer aborts at such a size")
def test_an_order_that_does_not_fit_into_memory_is_an_error(core):
    assert core.library.fdt_epoch_order(0, 0, 2**45, None) != 0
    assert core.library.fdt_error() == b"out of memory"


@pytest.mark.parametrize(("seed", "epoch", "n"), [(0, 0, 1), (5, 7, 3), (2**64 - 1, 2**32 - 1, 10_000), (1, 2, 1_001)])
def test_the_order_of_an_epoch_is_the_definitions(core, seed, epoch, n):
    assert np.array_equal(core.epoch_order(seed, epoch, n), epoch_order(seed, epoch, n))


def test_what_a_pool_cannot_hold_is_refused(core):
    with pytest.raises(ValueError, match="the pool is empty: expected one image or more"):
        core.begin_pool(0, (2, 2, 1), 0)
    for shape in [(0, 2, 1), (2, 0, 1), (2, 2, 0), (2, 2, 5)]:
        with pytest.raises(ValueError, match=r"images must be \[h w c\] with 1 to 4 channels"):
            core.begin_pool(1, shape, 0)
    with pytest.raises(ValueError, match="out of memory"):
        core.begin_pool(2**40, (224, 224, 3), 0)
    pool = core.pool(np.zeros((3, 2, 2, 1), np.uint8), [0, 1, 0], 2, 1)
    with pytest.raises(ValueError, match="the pool was made for less padding"):
        core.superpose(pool, 0, 0, [0], FDT(), Augment(2), CoreOutput((0.0,), (1.0,)))


@pytest.mark.parametrize("shape", [(6, 5, 3), (1, 1, 1), (28, 28, 1), (3, 3, 4)])
def test_images_come_out_of_a_pool_as_they_went_in(core, shape):
    images = numbered_images(20, shape) if shape[1] > 1 else np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    assert np.array_equal(core.pool(images, np.zeros(20), 1, 3).images(), images)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_folder_of_raw_shards_is_read_as_python_reads_it(core, numbered_shards, num_threads):
    images, labels, _ = load_shards(numbered_shards)
    pool = core.read_pool(str(numbered_shards), num_threads=num_threads)
    assert np.array_equal(pool.images(), images)
    assert np.array_equal(pool.labels.labels, labels)
    assert pool.labels.num_classes == 7


def test_shards_are_read_the_same_where_numbers_have_a_decimal_comma(core, numbered_shards, decimal_comma):
    pool = core.read_pool(str(numbered_shards))
    assert pool.shape == (230, 6, 5, 3)
    assert np.array_equal(pool.labels.labels, load_shards(numbered_shards)[1])


def test_real_gray_shards_are_read_as_python_reads_them(core, fashion_shards):
    images, labels, _ = load_shards(fashion_shards / "test")
    pool = core.read_pool(str(fashion_shards / "test"), pad=4)
    assert np.array_equal(pool.images(), images)
    assert np.array_equal(pool.labels.labels, labels)


@pytest.fixture
def shards(numbered_shards, tmp_path):
    """A copy of the numbered shards, to break."""
    return shutil.copytree(numbered_shards, tmp_path / "shards")


def rewrite(file, change):
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "shard-000001.tar",
            lambda tar: tar[:-512],
            r"shard-000001\.tar: expected \d+ bytes as its manifest says, got",
        ),
        ("shard-000001.tar", lambda tar: tar + bytes(512), r"shard-000001\.tar: expected \d+ bytes .*, got \d+"),
        ("shard-000002.tar", lambda tar: b"", r"shard-000002\.tar: expected \d+ bytes .*, got 0"),
        ("shard-000001.idx", lambda index: index[:-40], r"shard-000001\.tar: sample 59 .*its index"),
        ("shard-000001.idx", lambda index: index[: index.index(b"\n") + 1], "sample 0 .*its index ends early"),
        ("shard-000001.idx", lambda index: b"", r'shard-000001\.idx: expected "v1\.2 60" as its first line'),
        (
            "shard-000001.idx",
            lambda index: index.replace(b"v1.2 60", b"v1.2 61"),
            r'shard-000001\.idx: expected "v1\.2',
        ),
        ("shard-000001.idx", lambda index: index.replace(b"npy 512", b"npy 99999999"), "points outside of the tar"),
        ("shard-000001.idx", lambda index: index.replace(b"npy 512", b"npy -1"), r"shard-000001\.tar: sample 0"),
        ("shard-000001.idx", lambda index: index.replace(b"npy 512", b"npy 99999999999999999999"), "sample 0"),
        ("shard-000001.idx", lambda index: index.replace(b"npy 512", b"png 512"), r"no \.npy where expected"),
        ("shard-000000.tar", lambda tar: tar[:512] + b"\x00" + tar[513:], "not a uint8 image of the manifest's shape"),
        ("shard-000000.tar", lambda tar: tar[:1536] + b"\xff" + tar[1537:], r'\(.*\): expected a class number, got "'),
        ("shard-000000.tar", lambda tar: tar[:1536] + b"9" + tar[1537:], r"label 9 is outside \[0, 7\)"),
    ],
)
def test_broken_shards_are_errors_that_name_the_file(core, shards, name, change, match, num_threads):
    rewrite(shards / name, change)
    with pytest.raises(ValueError, match=match) as error:
        core.read_pool(str(shards), num_threads=num_threads)
    assert str(shards) in str(error.value)


@pytest.mark.parametrize("name", ["shard-000002.tar", "shard-000002.idx", "manifest.json"])
def test_a_missing_file_is_named(core, shards, name):
    (shards / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: No such file"):
        core.read_pool(str(shards))
    (shards / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}: Is a directory"):
        core.read_pool(str(shards))


def edited(**fields):
    return lambda manifest: json.dumps({**json.loads(manifest), **fields}).encode()


def first_shard(**fields):
    def change(manifest):
        content = json.loads(manifest)
        content["shards"][0] |= fields
        return json.dumps(content).encode()

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda manifest: b"", "expected a value at byte 0"),
        (lambda manifest: b"shards", "expected a value at byte 0"),
        (lambda manifest: manifest[: len(manifest) // 2], "expected "),
        (lambda manifest: manifest + b"}", "expected the end at byte"),
        (lambda manifest: b"\x00" * 50, "expected a value"),
        (lambda manifest: b"\xff\xfe" + manifest, "expected a value at byte 0"),
        (lambda manifest: b'{"a\\', "expected"),
        (lambda manifest: b'{"a\\u', "expected"),
        (lambda manifest: b"[" * 100_000, "expected no more nesting at byte"),
        (lambda manifest: b'{"a":' * 100_000, "expected no more nesting at byte"),
        (lambda manifest: b"[]", 'no field "encoding"'),
        (edited(shards=[], num_samples=0), "the pool is empty: expected one image or more"),
        (edited(shards=7), "expected a list"),
        (edited(num_samples=231), "num_samples is 231, but its shards hold 230"),
        (edited(num_samples=1.5), "expected a whole number"),
        (edited(num_samples=float("nan")), "expected"),
        (edited(encoding="png"), "a resident pool needs raw shards, these are png: shard the images again"),
        (edited(encoding=None), "expected a string"),
        (edited(shape=None), "the images differ in size: a resident pool needs one size"),
        (edited(shape=[6, 5]), r"expected shape \[h, w, c\]"),
        (edited(shape=[6, 0, 3]), "expected a whole number of 1 or more"),
        (edited(shape=[6, 5, 5]), "expected 1 to 4 channels, got 5"),
        (edited(shape=[10**15, 10**15, 3]), "expected images of less than 2.31 bytes"),
        (first_shard(name="../shard-000000.tar"), r"a shard's name holds a path: \.\./shard-000000\.tar"),
        (first_shard(num_samples=0), "expected a whole number of 1 or more"),
        (first_shard(num_samples=2**32), r"expected less than 2\^32 samples"),
        (first_shard(num_bytes=-1), "expected a whole number of 1 or more"),
    ],
)
def test_a_manifest_that_is_none_is_an_error_that_names_it(core, shards, change, match):
    rewrite(shards / "manifest.json", change)
    with pytest.raises(ValueError, match=match) as error:
        core.read_pool(str(shards))
    assert f"{shards}/manifest.json" in str(error.value)


def test_a_manifest_that_promises_more_than_there_is_does_not_take_that_memory(core, shards):
    rewrite(shards / "manifest.json", edited(num_samples=10**14 + 170))
    rewrite(shards / "manifest.json", first_shard(num_samples=10**14))
    with pytest.raises(ValueError, match=r"out of memory|expected"):
        core.read_pool(str(shards))


def test_png_shards_and_mixed_sizes_are_refused_with_the_way_out(core, tmp_path):
    write_shards(ArraySource(numbered_images(20), LABELS[:20]), tmp_path / "png", "png")
    with pytest.raises(ValueError, match=r"needs raw shards, these are png: .* --encode raw, or use FDTLoader"):
        core.read_pool(str(tmp_path / "png"))


def test_nothing_in_a_folder_that_is_none_is_an_error(core, tmp_path):
    with pytest.raises(ValueError, match=r'pool ".*nowhere" is neither registered nor a folder of raw shards'):
        core.read_pool(str(tmp_path / "nowhere"))
