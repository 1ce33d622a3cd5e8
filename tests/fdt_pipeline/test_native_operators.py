"""fn.fdt.superpose and fn.fdt.superpose_resident in pipelines of one's own, on the CPU, with every supported DALI."""

import locale
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, Geometric, MixUp, OneOf, Power, Uniform, mix_argument
from fdt_pipeline.definition.mixing import is_led
from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.definition.superposition import NO_AUGMENT, Pool, epoch_order
from tests.native_pools import defined_outputs, load_arrays
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images, ring_slots
from tools.native_probe import Draw

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]

PAPER = {"mean": [122.0, 117.0, 104.0], "std": 256.0}
BOUND = 2e-6  # of images, in units of pixel / 256
BATCH = 40
ALL_IMAGES = numbered_images()
IMAGES, CLASSES = ALL_IMAGES[:BATCH], LABELS[:BATCH]
ERRORS = (RuntimeError, ValueError)  # DALI 2 keeps what C++ calls an invalid argument, 1.34 makes it a RuntimeError


def feed(batches):
    """One batch after the other, over and over; resumable, as it is a function of the iteration."""
    return fn.external_source(lambda info: batches[info.iteration % len(batches)], batch=True, batch_info=True)


RUNNING = {"batch_size", "num_threads", "prefetch_queue_depth", "enable_checkpointing", "checkpoint", "seed"}


def operator_graph(operator, inputs, plan_seed=0, **options):
    """A pipeline of one operator; inputs: the batches of each of its inputs. Options are DALI's or the operator's."""

    @pipeline_def(batch_size=BATCH, num_threads=2, device_id=None)
    def graph():
        return tuple(operator(*map(feed, inputs), plan_seed=plan_seed, **options))

    return graph(**{name: options.pop(name) for name in RUNNING & options.keys()})


def window_graph(images, labels, ids=None, **options):
    """Batches of images and labels, and of ids where they are given, through fn.fdt.superpose."""
    return operator_graph(fn.fdt.superpose, [images, labels, *([] if ids is None else [ids])], **options)


def resident_graph(ids, **options):
    return operator_graph(fn.fdt.superpose_resident, [ids], **options)


def run(pipeline, iterations=1):
    """The next outputs, joined."""
    pipeline.build()
    outputs = [[np.array(part.as_array()) for part in pipeline.run()] for _ in range(iterations)]
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def ids_of(epoch, indices):
    indices = np.asarray(indices)
    return np.stack([np.full_like(indices, epoch), indices], axis=1)


def window(n=BATCH, first=0, **options):
    """A pipeline of the n numbered images from `first` on, 7 classes."""
    images, labels = ALL_IMAGES[first : first + n], LABELS[first : first + n]
    return window_graph([images], [labels], **{"num_classes": 7, "batch_size": n, **options})


@pytest.fixture(scope="module")
def pool():
    """The numbered images, 7 classes."""
    return load_arrays(ALL_IMAGES, LABELS, 7)


def resident(pool, indices=range(BATCH), epoch=0, **options):
    """A pipeline of the outputs `indices` of a pool."""
    return resident_graph([ids_of(epoch, indices)], pool=pool.name, batch_size=len(indices), **options)


def definition(images, labels, indices, fdt, augment=NO_AUGMENT, seed=0, epoch=0, leaders=None):
    """f64[n c h w] and f32[n 7] with the paper's mean and std."""
    draw = Draw(seed, epoch, indices, fdt, augment, leaders)
    pixels, targets = defined_outputs(images, Pool(labels, 7), draw, PAPER["mean"])
    return pixels.transpose(0, 3, 1, 2), targets


def assert_equal(got, expected):
    for part, other in zip(got, expected, strict=True):
        assert np.array_equal(part, other)


def assert_same(got, expected):
    assert np.abs(got[0] - expected[0]).max() < BOUND
    assert np.array_equal(got[1], expected[1])


OPTIONS = [
    (FDT(), NO_AUGMENT, {}),
    (FDT(), Augment(2), {"pad": 2, "flip": True}),
    (FDT(min_images=3, max_images=4), Augment(5, flip=False), {"pad": 5}),
    (FDT(probability=0.3), Augment(0), {"flip": True}),
    (FDT(targets="dominant"), NO_AUGMENT, {"targets": "dominant"}),
    (FDT(series=Power(2.5)), NO_AUGMENT, {}),
    (FDT(series=Geometric(0.5), unique_classes=False, label_smoothing=0.1), NO_AUGMENT, {}),
    (MixUp(0.4, anchor="random"), Augment(2), {"pad": 2, "flip": True}),
    (MixUp(1), NO_AUGMENT, {}),
    (CutMix(1, anchor="random", unique_classes=True), NO_AUGMENT, {}),
    (OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.3, None: 0.2}), Augment(1), {"pad": 1, "flip": True}),
]


@pytest.mark.parametrize(("mix", "augment", "options"), OPTIONS)
def test_windows_and_pools_are_mixed_as_the_definition_says(pool, mix, augment, options):
    indices = np.arange(100, 100 + BATCH)
    places, order = (np.arange(BATCH), epoch_order(9, 3, NUM_SAMPLES)[indices]) if is_led(mix) else (None, None)
    got = run(window(ids=[ids_of(3, indices)], plan_seed=9, mix=mix, **options, **PAPER))
    assert_same(got, definition(IMAGES, CLASSES, indices, mix, augment, 9, 3, places))
    got = run(resident(pool, indices, epoch=3, plan_seed=9, mix=mix, **options, **PAPER))
    assert_same(got, definition(ALL_IMAGES, LABELS, indices, mix, augment, 9, 3, order))


def test_targets_are_what_the_mix_says_unless_they_are_passed(pool):
    for graph in (window, lambda **options: resident(pool, **options)):
        dominant = run(graph(plan_seed=9, mix=MixUp(1, targets="dominant")))[1]
        assert np.array_equal(dominant.max(1), np.ones(BATCH))
        assert_equal(
            run(graph(plan_seed=9, mix=MixUp(1, targets="dominant"), targets="soft")),
            run(graph(plan_seed=9, mix=MixUp(1))),
        )


@pytest.mark.parametrize(("partners", "ring"), [("set", 0), ("set", 50), ("ring", 0), ("batch", 50)])
def test_partners_that_an_operator_does_not_have_are_refused(pool, partners, ring):
    with pytest.raises(ValueError, match=f'partners="{partners}", but this operator draws from the '):
        window(mix=MixUp(1, partners=partners), ring=ring)
    if partners != "set":
        with pytest.raises(ValueError, match="draws from the set"):
            resident(pool, mix=MixUp(1, partners=partners))


def test_mixings_are_taken_under_conditional_execution(pool):
    mix = OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.3, FDT(series=Geometric(0.5)): 0.2})

    @pipeline_def(batch_size=BATCH, num_threads=2, device_id=None, enable_conditionals=True)
    def graph():
        ids = feed([ids_of(0, np.arange(BATCH))])
        return tuple(fn.fdt.superpose_resident(ids, pool=pool.name, plan_seed=9, mix=mix))

    assert_equal(run(graph()), run(resident(pool, plan_seed=9, mix=mix)))


def test_without_a_mix_it_is_fdt(pool):
    for graph in (window, lambda **options: resident(pool, **options)):
        assert_equal(run(graph(plan_seed=9)), run(graph(plan_seed=9, mix=FDT())))
        assert_equal(run(graph(plan_seed=9)), run(graph(plan_seed=9, mix=mix_argument(FDT(), 7))))


def test_a_mix_that_is_none_gives_whole_images(pool):
    for graph in (window, lambda **options: resident(pool, **options)):
        _, targets = run(graph(plan_seed=9, mix=None))[:2]
        assert set(np.unique(targets)) == {0, 1}


def test_each_image_of_a_pool_leads_once_an_epoch(pool):
    """gpu_check.py compares the other anchors with the definition."""
    everything = np.arange(NUM_SAMPLES)
    got = run(resident(pool, everything, epoch=5, plan_seed=8, mix=FDT(anchor="epoch"), **PAPER))
    leaders = epoch_order(8, 5, NUM_SAMPLES)
    assert_same(got, definition(ALL_IMAGES, LABELS, everything, FDT(anchor="epoch"), seed=8, epoch=5, leaders=leaders))


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, 5])
def test_seeds_are_64_bits_passed_as_a_signed_number(pool, seed):
    got = run(resident(pool, plan_seed=seed - (seed >> 63 << 64), **PAPER))
    assert_same(got, definition(ALL_IMAGES, LABELS, np.arange(BATCH), FDT(), seed=seed))


def last_bits(index):
    """The largest probability of seed 0 with which output `index` of epoch 0 is left alone, and the next above."""
    word = int(random_words(0, Stream.PLAN, 0, index, 0)[2])
    return word / 2**32, (word + 1) / 2**32


@pytest.mark.parametrize("probability", [0, 1, 0.0, 1 / 3, 1e-9, np.float64(0.7), *last_bits(0), *last_bits(7)])
def test_a_probability_is_exact_to_its_last_bit(pool, probability):
    got, fdt = run(window(mix=FDT(probability=probability), **PAPER)), FDT(probability=probability)
    assert_same(got, definition(IMAGES, CLASSES, np.arange(BATCH), fdt))
    got = run(resident(pool, mix=fdt, **PAPER))
    assert_same(got, definition(ALL_IMAGES, LABELS, np.arange(BATCH), fdt))


def test_numbers_are_the_same_where_the_locale_has_a_decimal_comma(decimal_comma):
    mix = FDT(probability=1 / 3, label_smoothing=0.1, series=Power(2.5))
    options = {"mix": mix, "mean": 9.5, "std": [64.25, 256.5, 3.0]}
    in_comma = run(window(**options))
    locale.setlocale(locale.LC_NUMERIC, "C")
    assert_equal(in_comma, run(window(**options)))


@pytest.mark.parametrize(
    "labels",
    [
        *(CLASSES.astype(kind) for kind in (np.int64, np.int32, np.int16, np.uint8)),
        *(LABELS[:BATCH, None].astype(kind) for kind in (np.int64, np.int32, np.int16)),
        [np.frombuffer(b"%05d" % label, np.uint8) for label in CLASSES],
    ],
)
def test_labels_are_numbers_of_any_type_or_ascii_digits(labels):
    got = run(window_graph([IMAGES], [labels], num_classes=7))
    assert_equal(got, run(window()))


def test_uint8_that_may_be_a_number_or_a_digit_is_refused():
    """55 is "7" in ASCII."""
    refused(
        window_graph([IMAGES], [np.full((BATCH, 1), 55, np.uint8)], num_classes=60),
        r"label of sample 0: uint8 of shape \(1,\) may be a number or an ASCII digit: cast numbers to int32",
    )
    targets = run(window_graph([IMAGES], [np.full((BATCH, 1), 55, np.int32)], num_classes=60))[1]
    assert (targets.argmax(1) == 55).all()


@pytest.mark.parametrize("kind", ["window", "resident"])
def test_without_a_plan_seed_plans_follow_from_dalis_seed(pool, kind):
    def outputs(seed=None, **plan_seed):
        options = {"plan_seed": None, **plan_seed} | ({} if seed is None else {"seed": seed})
        return run(window(**options) if kind == "window" else resident(pool, **options))[1]

    first = outputs(1)
    assert np.array_equal(outputs(1), first)
    assert not np.array_equal(outputs(2), first)  # as ranks pass
    assert not np.array_equal(outputs(), outputs())  # DALI draws one
    assert np.array_equal(outputs(1, plan_seed=3), outputs(plan_seed=3))


def test_two_operators_of_a_pipeline_have_different_seeds(pool):
    @pipeline_def(batch_size=BATCH, num_threads=2, device_id=None, seed=1)
    def graph():
        ids = feed([ids_of(0, np.arange(BATCH))])
        return tuple(fn.fdt.superpose_resident(ids, pool=pool.name)[1] for _ in range(2))

    one, other = run(graph())
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("taken", [1, 4])
@pytest.mark.parametrize("kind", ["window", "resident"])
def test_a_checkpoint_keeps_the_count_of_samples_and_the_seed_that_dali_drew(pool, kind, taken):
    def graph(**checkpoint):
        ids = [ids_of(0, np.arange(first, first + BATCH)) for first in range(0, 5 * BATCH, BATCH)]
        options = {"plan_seed": None, "enable_checkpointing": True, **checkpoint}
        if kind == "window":
            return window_graph([IMAGES], [CLASSES], num_classes=7, **options)
        return resident_graph(ids, pool=pool.name, mix=FDT(anchor="epoch"), **options)

    whole = graph()
    run(whole, taken)
    checkpoint = whole.checkpoint()
    rest = run(whole, 3)
    assert_equal(run(graph(checkpoint=checkpoint), 3), rest)
    again = graph(checkpoint=checkpoint)  # and its own checkpoint keeps it as well
    run(again, 1)
    for part, expected in zip(run(graph(checkpoint=again.checkpoint()), 2), rest, strict=True):
        assert np.array_equal(part, expected[BATCH:])


def test_without_ids_samples_are_counted_over_the_batches():
    counted = run(window(), 3)
    expected = run(window(ids=[ids_of(0, BATCH * i + np.arange(BATCH)) for i in range(3)]), 3)
    assert_equal(counted, expected)
    assert not np.array_equal(counted[1][:BATCH], counted[1][BATCH : 2 * BATCH])


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_outputs_are_marked_with_their_layout(pool, layout):
    """gpu_check.py compares every type and layout with the definition."""
    for graph in (window(output_layout=layout), resident(pool, output_layout=layout)):
        graph.build()
        images, _ = graph.run()
        assert images.layout() == layout
        assert images[0].shape() == ([3, 6, 5] if layout == "CHW" else [6, 5, 3])


def test_gray_images_may_lack_a_dimension_and_are_repeated():
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 4, 5), np.uint8)
    one, three = (run(window_graph([images], [CLASSES], num_classes=7, channels=c))[0] for c in (1, 3))
    assert np.array_equal(three, np.repeat(one, 3, axis=1))


def test_the_size_of_images_may_change_from_batch_to_batch():
    sizes = [(6, 5, 3), (9, 30, 3), (2, 2, 1), (6, 5, 3)]
    images = [np.random.default_rng(0).integers(0, 256, (BATCH, *size), np.uint8) for size in sizes]
    together = window_graph(images, [CLASSES], num_classes=7, pad=1)
    together.build()
    for number, batch in enumerate(images):
        ids = [ids_of(0, number * BATCH + np.arange(BATCH))]
        alone = run(window_graph([batch], [CLASSES], ids, num_classes=7, pad=1))
        for part, expected in zip(together.run(), alone, strict=True):
            assert np.array_equal(np.array(part.as_array()), expected)


def test_a_window_that_is_smaller_than_the_batch_size_is_mixed_as_it_is():
    images, labels = ALL_IMAGES[:9], LABELS[:9]
    got = run(window_graph([images], [labels], num_classes=7, batch_size=64, **PAPER))
    assert_same(got, definition(images, labels, np.arange(9), FDT()))


def test_outputs_of_a_pool_do_not_depend_on_the_batch_size_threads_or_prefetch(pool):
    everything = run(resident(pool, range(200), plan_seed=3, pad=2, flip=True))
    for size, threads, prefetch in [(1, 1, 1), (7, 4, 3), (200, 3, 2)]:
        ids = [ids_of(0, np.arange(first, min(first + size, 200))) for first in range(0, 200, size)]
        options = {"plan_seed": 3, "pad": 2, "flip": True, "pool": pool.name}
        running = {"batch_size": size, "num_threads": threads, "prefetch_queue_depth": prefetch}
        parts = run(resident_graph(ids, **options, **running), len(ids))
        for part, expected in zip(parts, everything, strict=True):
            assert np.array_equal(part, expected)


SPANS = [(0, 0, 60, 230), (0, 60, 60, 230), (0, 200, 60, 230), (1, 3, 17, 230), (2**32 - 1, 2**32 - 9, 9, 2**32)]


LEADS = {
    "random": {"mix": FDT()},
    "epoch": {"mix": FDT(anchor="epoch")},
    "in_order": {"mix": FDT(anchor="epoch"), "in_order": True},
}


@pytest.mark.parametrize("anchor", LEADS)
def test_a_sample_may_be_many_outputs_of_a_pool_which_are_those_that_single_ids_give(pool, anchor):
    """Outputs behind the last one of `modulo` are the first ones again; samples may have different numbers of them."""
    spans = [span for span in SPANS if anchor == "random" or span[3] == 230]
    ids = [(epoch, (first + i) % modulo) for epoch, first, count, modulo in spans for i in range(count)]
    options = {"pool": pool.name, **LEADS[anchor], "pad": 2, "flip": True, "plan_seed": 3}
    single = run(resident_graph([np.array(ids)], batch_size=len(ids), **options))
    grouped = resident_graph([np.array(spans)], batch_size=len(spans), **options)
    grouped.build()
    found = grouped.run()
    assert found[0].layout() == "NCHW"
    for part, expected in zip(found, single, strict=True):
        samples = [np.array(part[i]) for i in range(len(spans))]
        assert [len(sample) for sample in samples] == [count for _, _, count, _ in spans]
        assert np.array_equal(np.concatenate(samples), expected)


@pytest.mark.parametrize("anchor", ["random", "epoch"])
@pytest.mark.parametrize("has_ids", [True, False])
def test_a_sample_may_be_a_window_of_its_own(anchor, has_ids):
    """With as many outputs; without ids they are counted on."""
    sizes = [BATCH, 70]
    images, labels = [ALL_IMAGES[:BATCH], ALL_IMAGES[40:110]], [LABELS[:BATCH], LABELS[40:110]]
    ids = [np.array([(0, 0, BATCH, 2**32), (0, BATCH, 70, 2**32)])] if has_ids else None
    options = {"num_classes": 7, "mix": FDT(anchor=anchor, series=Geometric(0.5)), "pad": 2}
    both = window_graph([images], [labels], ids, batch_size=2, **options)
    both.build()
    found = both.run()
    for number, size in enumerate(sizes):
        alone_ids = [ids_of(0, sum(sizes[:number]) + np.arange(size))]
        alone = run(window_graph([images[number]], [labels[number]], alone_ids, batch_size=size, **options))
        assert_equal([np.array(part[number]) for part in found], alone)


RING, STEP = 50, 20  # no multiple of it


def of_ring(position, fdt, augment, num=STEP):
    """The definition of the step's outputs, whose indices are 1,000 more than the positions. Images of the stream
    repeat."""
    slots, leaders = ring_slots(position, num, RING)
    number = slots % NUM_SAMPLES
    chosen = leaders if is_led(fdt) else None
    indices = 1000 + position + np.arange(num)
    return definition(ALL_IMAGES[number], LABELS[number], indices, fdt, augment, 9, 3, chosen)


def ring_batches(positions, is_span, num=STEP, holds=()):
    """Images, labels and ids of one batch after the other, the first position of each given."""
    numbers = [np.arange(position, position + num) % NUM_SAMPLES for position in positions]
    images, labels = [ALL_IMAGES[each] for each in numbers], [LABELS[each] for each in numbers]
    first = [-1 if position in holds else 1000 + position for position in positions]
    if is_span:
        ids = [np.array([(3, f, num, 2**32, p)]) for f, p in zip(first, positions, strict=True)]
        return [each[None] for each in images], [each[None] for each in labels], ids
    at = np.arange(num)
    steps = [np.full(num, -1) if f < 0 else f + at for f in first]
    ids = [np.stack([np.full(num, 3), step, p + at], axis=1) for step, p in zip(steps, positions, strict=True)]
    return images, labels, ids


def ring_outputs(batches, **options):
    graph = window_graph(*batches, **{"num_classes": 7, "plan_seed": 9, "batch_size": STEP, "ring": RING, **options})
    graph.build()
    found = []
    for _ in batches[0]:
        parts = [np.array(part.as_array()) for part in graph.run()]
        found.append([part[0] for part in parts] if parts[0].ndim == 5 else parts)
    return found


@pytest.mark.parametrize("is_span", [True, False])
@pytest.mark.parametrize(
    ("fdt", "augment", "options"),
    [
        (FDT(), Augment(2), {"pad": 2, "flip": True}),
        (FDT(min_images=3, anchor="epoch"), NO_AUGMENT, {"mix": FDT(min_images=3, anchor="epoch")}),
        (CutMix(0.7), Augment(2), {"mix": CutMix(0.7), "pad": 2, "flip": True}),
    ],
)
def test_outputs_of_a_ring_are_drawn_from_the_last_images_as_the_definition_says(fdt, augment, options, is_span):
    positions = range(0, 9 * STEP, STEP)
    found = ring_outputs(ring_batches(positions, is_span), **options, **PAPER)
    for position, outputs in zip(positions, found, strict=True):
        assert_same(outputs, of_ring(position, fdt, augment))


def test_a_batch_that_comes_in_again_changes_nothing():
    """As DALI is fed its last one where it works ahead of the end."""
    found = ring_outputs(ring_batches([0, 20, 40, 60, 60, 60, 80], False), **PAPER)
    for position, outputs in zip([60, 60, 60, 80], found[3:], strict=True):
        assert_same(outputs, of_ring(position, FDT(), NO_AUGMENT))


@pytest.mark.parametrize("is_span", [True, False])
def test_a_ring_that_is_filled_again_gives_the_same_and_position_0_empties_it(is_span):
    goes_on = ring_batches([80, 100, 120, 140, 0, 20], is_span, holds={80, 100})
    found = ring_outputs(goes_on, **PAPER)
    for position, outputs in zip([120, 140, 0, 20], found[2:], strict=True):
        assert_same(outputs, of_ring(position, FDT(), NO_AUGMENT))


def test_samples_of_a_ring_are_counted_where_they_have_no_ids():
    images, labels, _ = ring_batches([0, 20, 40, 60], False)
    found = ring_outputs((images, labels), **PAPER)
    slots, _ = ring_slots(60, STEP, RING)
    expected = definition(ALL_IMAGES[slots], LABELS[slots], 60 + np.arange(STEP), FDT(), seed=9)
    assert_same(found[3], expected)


@pytest.mark.parametrize(
    ("positions", "options", "match"),
    [
        ([40], {}, "the ring lacks images 10 to 39 of the stream.*with index -1"),
        ([0, 20, 40, 80, 100], {}, "the ring lacks images 50 to 79"),
        ([0], {"ring": STEP - 1}, "a ring of 19 images is too small for the 20 that come in at once"),
        ([0], {"ring": -1}, "ring must be 0 or more, got -1"),
        ([0], {"ring": 2**62}, r"ring must be below 2\^32 - 1"),
    ],
)
def test_a_ring_that_lacks_images_or_is_too_small_is_an_error(positions, options, match):
    with pytest.raises(ERRORS, match=match):
        ring_outputs(ring_batches(positions, False), **options)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([[3, 5, 0], [3, 6, 2]], "positions of a batch must follow on each other, got 2 for sample 1"),
        ([[3, 5, 0], [3, -1, 1]], "index must be -1 for all samples of a batch or for none"),
        ([[3, 5, -1], [3, 6, 0]], "positions must be 0 or more, got -1 for sample 0"),
        ([[3, 5], [3, 6]], "ids must be .epoch, index, position. of shape .3,."),
    ],
)
def test_ids_that_a_ring_cannot_take_are_refused(ids, match):
    with pytest.raises(ERRORS, match=match):
        run(window(2, ids=[np.array(ids)], ring=4))


def test_images_of_a_ring_have_one_shape():
    images = [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 5, 3), np.uint8)]
    with pytest.raises(ERRORS, match="images of a ring must have one shape, got 4 x 5 x 3 after 4 x 4 x 3"):
        run(window_graph(images, [LABELS[:2]], num_classes=7, batch_size=2, ring=4), 2)


def test_a_serialized_pipeline_is_the_same_pipeline_where_a_pool_of_its_name_is_loaded():
    pool = load_arrays(ALL_IMAGES, LABELS, 7, name="numbered")
    running = {"batch_size": BATCH, "num_threads": 2, "prefetch_queue_depth": 1}
    running |= {"exec_async": False, "exec_pipelined": False}  # so that one batch is enough

    @pipeline_def(device_id=None, **running)
    def graph():
        options = {"plan_seed": -7, "mix": FDT(anchor="epoch", series=Uniform()), "targets": "dominant", "pad": 1}
        ids = fn.external_source(name="ids")
        return tuple(fn.fdt.superpose_resident(ids, pool=pool.name, **options))

    def outputs(pipeline):
        pipeline.build()
        pipeline.feed_input("ids", ids_of(2, np.arange(BATCH)))
        return [np.array(part.as_array()) for part in pipeline.run()]

    first = graph()
    serialized, expected = first.serialize(), outputs(first)
    pool.close()

    def again():
        return outputs(Pipeline.deserialize(serialized, **running))  # 1.34 forgets them

    with pytest.raises(ERRORS, match=r'no pool "numbered": .*deserialized needs a pool .* under the same name'):
        again()
    kept = load_arrays(ALL_IMAGES, LABELS, 7, name="numbered")
    assert_equal(again(), expected)
    kept.close()


@pytest.mark.parametrize("n", [1, BATCH])
def test_a_batch_of_one_class_gives_single_images(n):
    mixed, targets = run(window_graph([IMAGES[:n]], [np.full(n, 3)], num_classes=7, batch_size=n))
    assert np.array_equal(targets, np.eye(7, dtype=np.float32)[np.full(n, 3)])
    numbers = mixed[:, 0, 0, 0].round().astype(int)
    assert np.array_equal(mixed.transpose(0, 2, 3, 1), IMAGES[numbers])


def refused(pipeline, match):
    with pytest.raises(ERRORS, match=match) as error:
        run(pipeline)
    assert "codec can't decode" not in str(error.value)


def with_label(label, sample):
    return np.where(np.arange(BATCH) == sample, label, CLASSES)


def digits(text):
    return [np.frombuffer(text, np.uint8)] * BATCH


BAD_IMAGES = [
    ([*IMAGES[:3], IMAGES[3][:, 1:].copy(), *IMAGES[4:]], "got .*6.*5.*3.*sample 0.*6.*4.*3.*sample 3.*resize"),
    ([IMAGES[0][:, :, :1].copy(), *IMAGES[1:]], "must have one shape, got .*sample 0.* and .*sample 1"),
    (IMAGES.astype(np.float32), "images must be uint8, got float: superpose before normalizing"),
    (IMAGES.reshape(BATCH, -1), r"images must be \[h w c\] or \[h w\], or many in a sample, .* got shape"),
    (np.repeat(IMAGES[:, None], 2, 1), "sample 0 has 2 images, but labels of shape"),
    (IMAGES[:, :0].reshape(BATCH, 0, 6, 5, 3), "sample 0 is a batch without images"),
    (np.zeros((BATCH, 2, 2, 5), np.uint8), "images must have 1 to 4 channels, got 5"),
    (np.zeros((BATCH, 0, 2, 3), np.uint8), "images must have pixels"),
]
LABEL_TYPES = "labels must be int64, int32, int16, uint8 scalars, or the ASCII digits of a .cls member, got "
BAD_LABELS = [
    (with_label(7, 5), r"label 7 of sample 5 is outside \[0, 7\): check num_classes"),
    (with_label(-1, 39), r"label -1 of sample 39 is outside \[0, 7\)"),
    (np.full(BATCH, 2**62), "label 4611686018427387904 of sample 0 is outside"),
    (CLASSES.astype(np.float32), LABEL_TYPES + "float"),
    (np.stack([CLASSES, CLASSES], 1), r"labels must be one number a sample, got shape .*2.* for sample 0"),
    (digits(b"cat"), 'label of sample 0: a .cls member holds "cat", expected a'),
    (digits(b"\xff\x00\n"), r'a .cls member holds "\?\?\?"'),
    (digits(b""), 'a .cls member holds ""'),
    (CLASSES[:-1], "."),
]


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [(images, CLASSES, match) for images, match in BAD_IMAGES] + [(IMAGES, *bad) for bad in BAD_LABELS],
)
def test_batches_that_cannot_be_mixed_are_errors_that_name_the_sample(images, labels, match):
    refused(window_graph([images], [labels], num_classes=7), match)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (ids_of(0, np.arange(BATCH)).astype(np.int32), "ids must be int64, got int32"),
        (np.arange(BATCH), r"ids must be \(epoch, index\)"),
        (ids_of(-1, np.arange(BATCH)), r"0 <= epoch < 2\^32 and 0 <= index < 2\^32, got \(-1, 0\) for sample 0"),
        (ids_of(2**32, np.arange(BATCH)), r"got \(4294967296, 0\) for sample 0"),
        (ids_of(0, np.arange(BATCH) + 2**32 - 1), r"got \(0, 4294967296\) for sample 1"),
    ],
)
def test_ids_that_are_none_are_refused_by_both(pool, ids, match):
    refused(window(ids=[ids]), match)
    refused(resident_graph([ids], pool=pool.name), match)


@pytest.mark.parametrize(
    ("span", "match"),
    [
        ((0, 5, 3, 5), r"0 <= first < modulo <= 2\^32 and 0 < count < 2\^32, got \(0, 5, 3, 5\) for sample 0"),
        ((0, 0, 0, 5), r"got \(0, 0, 0, 5\)"),
        ((0, 0, 1, 2**32 + 1), r"got \(0, 0, 1, 4294967297\)"),
        ((0, -1, 1, 5), r"got \(0, -1\)"),
        ((2**32, 0, 1, 5), r"got \(4294967296, 0\)"),
        ((0, 200, 31, 2**32), 'anchor "epoch": index 230 is not below the number of images, 230'),
    ],
)
def test_spans_that_are_none_are_refused(pool, span, match):
    refused(resident_graph([np.array([span])], pool=pool.name, mix=FDT(anchor="epoch"), batch_size=1), match)


def test_a_window_in_a_sample_wants_a_span_of_its_size():
    ids = [np.array([(0, 0, 39, 2**32)])]
    refused(window_graph([IMAGES[None]], [CLASSES[None]], ids, num_classes=7, batch_size=1), "ids must be .*count")


def test_ids_of_both_kinds_in_a_batch_are_refused(pool):
    """Before anything is read of a pair but its two numbers."""
    ids = [[np.array([0, 0, BATCH, 2**32]), np.array([0, 0])]]
    images, labels = np.stack([IMAGES, IMAGES]), np.stack([CLASSES, CLASSES])
    match = "one kind in a batch, got shape .*2.* for sample 1"
    refused(window_graph([images], [labels], ids, num_classes=7, batch_size=2), match)
    refused(resident_graph(ids, pool=pool.name, batch_size=2), match)


@pytest.mark.parametrize(("leads", "named"), [("epoch", 'anchor "epoch"'), ("in_order", "in_order")])
def test_an_index_beyond_the_pool_cannot_lead(pool, leads, named):
    match = f"{named}: index 230 is not below the number of images, 230"
    refused(resident(pool, [0, NUM_SAMPLES], **LEADS[leads]), match)
    run(resident(pool, [0, NUM_SAMPLES]))


TEXT = "sum 4294967296 4294967296 0 1 0.0 1 0 harmonic"
BAD_OPTIONS = [
    ({"mix": FDT(min_images=8)}, "min_images 8 is over the number of classes, 7: each may be used once"),
    ({"mix": FDT(max_images=8)}, "max_images 8 is over the number of classes, 7"),
    ({"mix": FDT(max_images=70_000, unique_classes=False)}, "operators sum up to 65,536 images"),
    ({"mix": 0.2}, "mix must be an FDT, MixUp, CutMix, OneOf or None, got 0.2"),
    *(
        ({"mix": text}, "mix must be what fdt_pipeline.mix_argument returns, or")
        for text in (
            "",
            "mixup",
            "ä" * 30,
            TEXT + ";;",
            TEXT.replace("4294967296", "4294967295"),
            TEXT.replace("sum", "max"),
            TEXT.replace("0.0", "1.0"),
            TEXT.replace("0.0", "0,5"),
            TEXT.replace(" 1 0 ", " 0 0 "),
            TEXT + " 1",
            TEXT.replace(" 1 0 ", " 3 2 "),
            mix_argument(MixUp(1), 7).replace(" 2 2 ", " 1 2 "),
        )
    ),
    ({"mix": TEXT.replace("harmonic", "linear")}, 'series must be "harmonic", or what .* got "linear"'),
    ({"mix": mix_argument(MixUp(1), 7)[:-8]}, "expected 4,096 quantiles of lambda"),
    ({"mix": mix_argument(MixUp(1), 7)[:-8] + "ffffffff"}, "expected 4,096 quantiles of lambda"),
    ({"mix": mix_argument(FDT(), 6)}, "weights for sums of up to 6 images, but up to 7 are superposed"),
    ({"targets": "hard"}, 'targets must be one of "dominant", "label", "soft", got "hard"'),
    ({"pad": -1}, "pad must be 0 or more, got -1"),
    ({"pad": 40_000}, "pad must be 32767 or less, got 40000"),
    ({"mean": [1.0, 2.0]}, "mean must be one number or 3 of them, got 2"),
    ({"mean": float("nan")}, "mean must be finite"),
    ({"std": 0.0}, "std must be finite and above 0, got 0"),
    ({"std": [1.0, -1.0, 1.0]}, "std must be finite and above 0, got -1"),
    ({"mean": [0.485, 0.456, 0.406], "std": 0.5}, r"by 255: mean=\[123.675, 116.28, 103.53\], std=\[127.5\]"),
    ({"std": [0.229, 0.224, 0.225]}, r"multiply by 255: mean=\[0\], std=\[58.395, 57.12, 57.375\]"),
    ({"channels": 1}, "channels=1, but the images have 3: only gray ones can be repeated"),
    ({"channels": -1}, "channels must be 0 or more, got -1"),
    ({"dtype": types.UINT8}, "dtype must be FLOAT or FLOAT16: cast other types after"),
    ({"output_layout": "NCHW"}, 'output_layout must be "CHW" or "HWC", got "NCHW"'),
    ({"plan_sed": 1}, "plan_sed"),
]


BAD_FOR_WINDOWS = [
    *(({"num_classes": n}, rf"num_classes must be in \[1, 65536\], got {n}") for n in (0, -1, 65_537, 2**40)),
]


BAD_FOR_POOLS = [({"in_order": True}, 'in_order needs outputs that have a leader: pass a mix with anchor="epoch"')]


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [("window", *bad) for bad in [*BAD_OPTIONS, *BAD_FOR_WINDOWS]]
    + [("resident", *bad) for bad in [*BAD_OPTIONS, *BAD_FOR_POOLS]],
)
def test_bad_arguments_are_refused_with_what_was_expected(pool, kind, options, match):
    with pytest.raises((*ERRORS, TypeError, KeyError), match=match):
        run(window(**options) if kind == "window" else resident(pool, **options))


def test_a_pool_of_more_classes_than_the_operator_takes_is_refused_when_it_is_built():
    too_many = load_arrays(IMAGES, CLASSES, 65_537)
    with pytest.raises(ERRORS, match=r"num_classes must be in \[1, 65536\], got 65537"):
        resident(too_many).build()


def test_a_pool_that_this_process_does_not_have_is_an_error_that_says_how_to_load_one(pool):
    match = r'this process has no pool "shards/train": load one with fdt_pipeline\.load_pool\(shards\)'
    refused(resident_graph([ids_of(0, np.arange(4))], pool="shards/train", batch_size=4), match)
    refused(resident(pool, pad=9), 'pool ".*" was loaded for a pad of up to 8 pixels, got 9: load it with pad=9')


def test_operators_keep_the_memory_of_a_pool_that_is_closed(pool):
    closed = load_arrays(ALL_IMAGES, LABELS, 7)
    pipeline = resident(closed)
    pipeline.build()
    closed.close()
    del closed
    assert np.array_equal(run(pipeline)[0], run(resident(pool))[0])


def test_a_pipeline_goes_on_after_others_have_failed():
    good = window()
    first = run(good)
    for _ in range(20):
        refused(window_graph([IMAGES], [CLASSES + 1], num_classes=6), "is outside")
    assert_equal([np.concatenate(parts) for parts in zip(first, run(good), strict=True)], run(window(), 2))


@pytest.mark.parametrize("operator", [fn.fdt.superpose, fn.fdt.superpose_resident])
def test_help_says_shapes_ranges_and_errors(operator):
    text = operator.__doc__
    for word in ("Errors:", "Outputs:", "(channels, h, w)", "num_classes", "K is uniform on", "MixUp", "float32"):
        assert word in text, word


@pytest.mark.parametrize("options", [{"mode": "resident"}, {"mode": "streaming", "ring": 500}])
@pytest.mark.parametrize("fdt", [FDT(), FDT(anchor="epoch", min_images=4, probability=0.7)])
def test_both_engines_of_the_loader_agree_on_real_images(fashion_shards, options, fdt):
    shared = {"mix": fdt, "seed": 3, "channels": 3, **options}
    native, python = (
        FDTLoader(fashion_shards / "train", 256, engine=engine, **shared) for engine in ("native", "torch")
    )
    for a, b in islice(zip(native, python, strict=True), 5):
        assert (a[0] - b[0]).abs().max() < BOUND
        assert torch.equal(a[1], b[1])
