"""The batch of plans against the definition, and the law of the plans against the paper's figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fdt_pipeline.definition.mixing import FDT, is_led
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import Augment, Pool, draw_plan, superpose_targets
from tests.mixes import mixes

FIELDS = ("images", "classes", "dy", "dx", "flip", "box", "label_smoothing")
SIGNIFICANCE = 1e-4  # with fixed seeds: a law that holds fails never, a wrong one practically always


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 11), min_size=1, max_size=50),
    mixes(12),
    st.sampled_from([Augment(), Augment(pad=0), Augment(pad=7, flip=False)]),
    st.sampled_from([(1, 1), (5, 8), (32, 32), (224, 176)]),
)
def test_plans_equal_the_definition_bit_for_bit(seed, epoch, labels, mix, augment, size):
    pool = Pool(labels, 12)
    indices = np.array([0, 1, 17, 2**31, 2**32 - 1])
    leaders = indices % len(pool) if is_led(mix) else None
    plans = draw_plans(seed, epoch, indices, pool, mix, augment, leaders, size)
    for i, index in enumerate(indices):
        leader = None if leaders is None else int(leaders[i])
        expected = draw_plan(seed, epoch, int(index), pool, mix, augment, leader, size)
        for name in FIELDS:
            assert np.array_equal(getattr(plans[i], name), getattr(expected, name)), name
        assert np.array_equal(plans[i].weights.astype(np.float32), expected.weights.astype(np.float32))
        for targets in ("soft", "dominant"):
            assert np.array_equal(batch_targets(plans, 12, targets)[i], superpose_targets(expected, 12, targets))


@pytest.mark.parametrize(
    ("classes", "mean_first", "mean_images", "entropy"), [(10, 0.49868, 5.5, 1.3314), (100, 0.25530, 50.5, 2.9797)]
)
def test_moments_are_the_readings_figures(classes, mean_first, mean_images, entropy):
    number = 100_000 if classes == 10 else 20_000
    pool = Pool(np.arange(classes * 5) % classes, classes)
    plans = draw_plans(7, 0, np.arange(number), pool, FDT())
    first = plans.weights[plans.offsets[:-1]]
    row_entropy = np.bincount(plans.rows(), -plans.weights * np.log(plans.weights), minlength=number)
    for values, expected in ((first, mean_first), (plans.num_images(), mean_images), (row_entropy, entropy)):
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(number)


def test_number_of_images_is_uniform():
    plans = draw_plans(11, 0, np.arange(100_000), Pool(np.arange(30) % 10, 10), FDT(min_images=2, max_images=8))
    counts = np.bincount(plans.num_images(), minlength=11)
    assert counts[:2].sum() == counts[9:].sum() == 0
    assert stats.chisquare(counts[2:9]).pvalue > SIGNIFICANCE


def test_plans_have_the_law_of_the_papers_own_rejection_loop():
    """An independent Algorithm 2: draw any image, and again while its class is used. How often each order of three
    classes comes, out of four unbalanced ones, is compared by chi-square over 10^5 plans."""
    labels = np.repeat(np.arange(4), [3, 5, 12, 20])
    rng = np.random.default_rng(0)
    by_rejection = []
    for _ in range(20_000):
        used: list[int] = []
        while len(used) < 3:
            label = int(labels[rng.integers(len(labels))])
            if label not in used:
                used.append(label)
        by_rejection.append(used)
    plans = draw_plans(17, 0, np.arange(100_000), Pool(labels, 4), FDT(min_images=3, max_images=3))
    both = np.array(by_rejection), plans.classes.reshape(-1, 3)
    counts = np.stack([np.bincount(orders @ [16, 4, 1], minlength=64) for orders in both])
    counts = counts[:, counts.any(0)]
    assert counts.shape[1] == 24
    assert stats.chi2_contingency(counts).pvalue > SIGNIFICANCE


def test_images_within_a_class_shifts_and_flips_are_uniform():
    pool = Pool(np.repeat([0, 1], [7, 3]), 2)
    plans = draw_plans(19, 0, np.arange(50_000), pool, FDT(min_images=2), Augment(pad=4, flip=True))
    for counts in (
        np.bincount(plans.images, minlength=10)[:7],
        np.bincount(plans.images, minlength=10)[7:],
        np.bincount(plans.dy * 9 + plans.dx, minlength=81),
        np.bincount(plans.dx * 2 + plans.flip, minlength=18),
    ):
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_share_of_mixed_outputs_is_the_probability():
    pool = Pool(np.arange(20) % 10, 10)
    plans = draw_plans(23, 0, np.arange(100_000), pool, FDT(min_images=2, probability=0.3))
    mixed = int((plans.num_images() > 1).sum())
    assert stats.binomtest(mixed, 100_000, 0.3).pvalue > SIGNIFICANCE
    assert (draw_plans(23, 0, np.arange(999), pool, FDT(min_images=2, probability=0)).num_images() == 1).all()
    assert (draw_plans(23, 0, np.arange(999), pool, FDT(min_images=2)).num_images() > 1).all()


def test_a_pool_of_few_classes_cuts_the_number_of_images():
    plans = draw_plans(29, 0, np.arange(1000), Pool([3, 3, 8], 10), FDT(min_images=5))
    assert (plans.num_images() == 2).all()
    assert (draw_plans(29, 0, np.arange(1000), Pool([3, 3], 10), FDT()).num_images() == 1).all()
