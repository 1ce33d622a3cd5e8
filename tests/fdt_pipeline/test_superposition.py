import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdt_pipeline.definition.mixing import FDT, PLAIN, is_led
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform
from fdt_pipeline.definition.superposition import (
    NO_AUGMENT,
    NO_BOX,
    Augment,
    Pool,
    augment_image,
    draw_plan,
    epoch_order,
    smooth_targets,
    standardize,
    superpose_images,
    superpose_targets,
)
from tests.mixes import mixes

POOLS = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(lambda labels: Pool(labels, 7))
OPTIONS = st.builds(
    FDT,
    min_images=st.integers(1, 3),
    max_images=st.sampled_from([None, 3, 5, 7]),
    probability=st.sampled_from([0.0, 0.3, 1.0]),
    series=st.sampled_from([Harmonic(), Power(2.8), Geometric(0.5), Uniform()]),
)
SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 1000), st.integers(0, 10**6), POOLS, OPTIONS)
def test_classes_of_a_plan_are_pairwise_different_and_those_of_its_images(seed, epoch, index, pool, fdt):
    plan = draw_plan(seed, epoch, index, pool, fdt, Augment())
    assert len(set(plan.classes.tolist())) == len(plan.classes)
    assert (pool.labels[plan.images] == plan.classes).all()
    assert 1 <= len(plan.images) <= min(fdt.max_images or 7, pool.num_distinct)
    assert ((plan.dy >= 0) & (plan.dy <= 8) & (plan.dx >= 0) & (plan.dx <= 8)).all()


@given(SEEDS, POOLS, OPTIONS)
def test_targets_sum_to_one(seed, pool, fdt):
    plan = draw_plan(seed, 0, 0, pool, fdt)
    assert superpose_targets(plan, 7).sum() == pytest.approx(1, abs=1e-6)
    dominant = superpose_targets(plan, 7, "dominant")
    assert dominant.sum() == 1
    assert dominant[plan.classes[0]] == 1
    assert superpose_targets(plan, 7)[plan.classes[0]] == superpose_targets(plan, 7).max()


@settings(max_examples=100)
@given(SEEDS, POOLS, mixes(7))
def test_pixels_that_encode_the_class_become_the_target_on_average(seed, pool, mix):
    """Law 4. Channel c of an image of class c is 1; classes repeat in the pool on purpose."""
    images = np.zeros((len(pool), 4, 6, 7), np.uint8)
    images[np.arange(len(pool)), :, :, pool.labels] = 1
    plan = draw_plan(seed, 3, 5, pool, mix, Augment(pad=0, flip=True), 0 if is_led(mix) else None, (4, 6))
    mixed = superpose_images(plan, images)
    if plan.box == NO_BOX:
        assert (mixed == mixed[0, 0]).all()
    expected = smooth_targets(mixed.mean((0, 1)).astype(np.float32), plan.label_smoothing)
    assert np.allclose(expected, superpose_targets(plan, 7), atol=1e-6)


def test_a_shift_moves_the_image_over_a_zero_frame_and_the_flip_comes_after():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1)
    assert augment_image(image, 1, 1, False, 1)[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert augment_image(image, 0, 2, False, 1)[..., 0].tolist() == [[0, 0, 0], [2, 3, 0]]
    assert augment_image(image, 0, 2, True, 1)[..., 0].tolist() == [[0, 0, 0], [0, 3, 2]]


def test_every_constituent_gets_a_shift_and_flip_of_its_own():
    """Law 5."""
    pool = Pool(np.arange(100), 100)
    plan = draw_plan(1, 0, 0, pool, FDT(min_images=100), Augment(pad=4, flip=True))
    assert len(set(zip(plan.dy, plan.dx, plan.flip, strict=True))) > 60
    assert set(plan.dy) == set(plan.dx) == set(range(9))


def test_the_mean_may_be_taken_off_before_or_after_the_sum():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 4, 4, 3), np.uint8)
    plan = draw_plan(2, 0, 9, Pool(np.arange(20) % 10, 10), FDT(min_images=5))
    mean, std = (122, 117, 104), 256
    before = sum(w * standardize(images[i], mean, std) for w, i in zip(plan.weights, plan.images, strict=True))
    assert np.allclose(before, standardize(superpose_images(plan, images), mean, std), atol=1e-12)


def test_in_the_epochs_order_every_image_leads_once():
    pool = Pool(np.arange(50) % 5, 5)
    order = epoch_order(4, 2, 50)
    fdt = FDT(anchor="epoch")
    leaders = [int(draw_plan(4, 2, i, pool, fdt, leader=int(order[i])).images[0]) for i in range(50)]
    assert sorted(leaders) == list(range(50))
    assert not np.array_equal(order, epoch_order(4, 3, 50))


def test_plain_training_is_one_whole_image():
    plan = draw_plan(0, 0, 3, Pool([0, 1, 1, 0], 2), PLAIN, NO_AUGMENT, leader=2)
    assert plan.images.tolist() == [2]
    assert plan.weights.tolist() == [1]
    assert plan.dy.tolist() == plan.dx.tolist() == [0]
    assert not plan.flip.any()


def test_golden_plan():
    """Frozen: a change here changes every run that was ever made with a seed."""
    plan = draw_plan(2021, 3, 41, Pool(np.arange(60) % 6, 6), FDT(min_images=4), Augment())
    assert (plan.images.tolist(), plan.dy.tolist(), plan.dx.tolist(), plan.flip.tolist()) == GOLDEN


GOLDEN = ([32, 16, 42, 45, 31], [3, 8, 6, 8, 4], [5, 2, 1, 7, 6], [False, True, True, True, True])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_images": 0}, "min_images"),
        ({"min_images": 3, "max_images": 2}, "max_images"),
        ({"probability": 1.1}, "probability"),
        ({"probability": float("nan")}, "probability"),
        ({"series": "harmonic"}, "series"),
        ({"series": Harmonic}, "series must have a method weights"),
        ({"min_images": 2.5}, "min_images must be a whole number, got 2.5"),
        ({"min_images": True}, "min_images must be a whole number, got True"),
        ({"min_images": "2"}, "min_images must be a whole number, got '2'"),
        ({"max_images": float("nan")}, "max_images must be a whole number, got nan"),
        ({"anchor": np.array([1, 2])}, "anchor must be"),
        ({"anchor": "first"}, "anchor"),
        ({"targets": "hard"}, "targets"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        FDT(**options)


class EndsAtThree(Harmonic):
    def weights(self, k):
        return [None, [1.0], [0.6, 0.4], [0.5, 0.3, 0.2]][k]


class WrongAtThree(Harmonic):
    def weights(self, k):
        return super().weights(k) * (2 if k == 3 else 1)


@pytest.mark.parametrize(
    ("fdt", "match"),
    [
        (FDT(max_images=11), "max_images 11 is over the number of classes, 10"),
        (FDT(min_images=11), "min_images 11 is over"),
        (
            FDT(series=EndsAtThree()),
            r"weights\(4\) failed \(IndexError.*: it must give weights for",
        ),
        (FDT(series=WrongAtThree()), r"weights\(3\) must be 0 or more with sum 1"),
    ],
)
def test_options_that_do_not_fit_the_classes_are_refused(fdt, match):
    FDT(max_images=10).check_classes(10)
    with pytest.raises(ValueError, match=match):
        fdt.check_classes(10)


def test_a_pool_without_images_or_with_a_label_out_of_range_is_refused():
    with pytest.raises(ValueError, match="n >= 1"):
        Pool([], 3)
    with pytest.raises(ValueError, match=r"label 3 of sample 2 is outside \[0, 3\)"):
        Pool([0, 1, 3], 3)
    with pytest.raises(ValueError, match="pad"):
        Augment(pad=-1)
    with pytest.raises(ValueError, match="leader"):
        draw_plan(0, 0, 0, Pool([0, 1], 2), FDT(anchor="epoch"))
