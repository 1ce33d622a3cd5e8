"""The law of the plans of MixUp, CutMix and OneOf, over 10^5 of them, and what is frozen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fdt_pipeline.definition.mixing import FDT, LAMBDA_ONE, PLAIN, CutMix, MixUp, OneOf, is_led
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.series import Power
from fdt_pipeline.definition.superposition import (
    NO_BOX,
    Augment,
    Plan,
    Pool,
    draw_plan,
    epoch_order,
    superpose_images,
    superpose_targets,
)
from tests.mixes import ALPHAS

N = 100_000
SIGNIFICANCE = 1e-4  # with fixed seeds: a law that holds fails never, a wrong one practically always
SIZE = (32, 32)
UNEVEN = Pool(np.repeat(np.arange(4), [2, 3, 5, 10]), 4)
EACH_ALPHA = pytest.mark.parametrize("alpha", [0.05, 0.2, 1, 8])
EACH_PAIR = pytest.mark.parametrize("pair", [MixUp, CutMix])


def plans_of(mix, pool=UNEVEN, seed=31, n=N, size=SIZE, epoch=0):
    """n plans; their leaders, where there are any, walk the pool again and again."""
    leaders = np.arange(n) % len(pool) if is_led(mix) else None
    return draw_plans(seed, epoch, np.arange(n), pool, mix, leaders=leaders, size=size)


def lambdas_of(plans):
    return plans.weights[plans.offsets[:-1]].astype(np.float64)


def beta_pvalue(lambdas, alpha):
    """Kolmogorov and Smirnov's test of Beta(alpha, alpha), rounded to multiples of 2**-24 as lambda is: where alpha is
    0.05, four of ten are 0 or 1."""
    values, counts = np.unique(np.rint(lambdas * LAMBDA_ONE), return_counts=True)
    upto = np.cumsum(counts) / len(lambdas)
    cdf = stats.beta(alpha, alpha).cdf
    below, above = (cdf((values + half) / LAMBDA_ONE) for half in (-0.5, 0.5))
    distance = max(np.abs(upto - above).max(), np.abs(upto - counts / len(lambdas) - below).max())
    return stats.kstwo.sf(distance, len(lambdas))


def are_independent(first, second):
    """Chi-square over the table of how often each pair of (few) values comes."""
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return stats.chi2_contingency(table).pvalue > SIGNIFICANCE


@EACH_ALPHA
def test_the_weight_of_the_leader_has_scipys_beta_law(alpha):
    assert beta_pvalue(lambdas_of(plans_of(MixUp(alpha))), alpha) > SIGNIFICANCE


def test_another_alpha_is_told_from_it():
    assert beta_pvalue(lambdas_of(plans_of(MixUp(1.05))), 1) < SIGNIFICANCE
    assert beta_pvalue(lambdas_of(plans_of(MixUp(0.05))), 0.053) < SIGNIFICANCE


@EACH_ALPHA
def test_moments_of_lambda_are_betas(alpha):
    centred = lambdas_of(plans_of(MixUp(alpha))) - 0.5
    for power in (1, 2, 3, 4):
        values, expected = centred**power, stats.beta(alpha, alpha, loc=-0.5).moment(power)
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(N)


def test_each_output_has_a_lambda_of_its_own():
    lambdas = lambdas_of(plans_of(MixUp(1)))
    assert len(set(lambdas[:256])) > 230  # of 4,096 quantiles
    tenths = (lambdas * 9.999).astype(int)
    for distance in (1, 2, 256):
        assert are_independent(tenths[:-distance], tenths[distance:])
    assert are_independent(tenths, (lambdas_of(plans_of(MixUp(1), epoch=1)) * 9.999).astype(int))


@EACH_PAIR
def test_lambda_says_nothing_of_who_is_mixed(pair):
    plans = plans_of(pair(1, anchor="random"))
    tenths = (lambdas_of(plans) * 9.999).astype(int)
    assert are_independent(tenths, plans.images[0::2])
    assert are_independent(tenths, plans.images[1::2])


@EACH_PAIR
@pytest.mark.parametrize("anchor", ["epoch", "random"])
def test_partners_are_uniform_over_the_set_whoever_leads(pair, anchor):
    plans = plans_of(pair(1, anchor=anchor))
    leaders, partners = plans.images.reshape(-1, 2).T
    for images in (leaders, partners):
        assert stats.chisquare(np.bincount(images, minlength=len(UNEVEN))).pvalue > SIGNIFICANCE
    assert are_independent(leaders, partners)


@EACH_PAIR
def test_each_image_leads_once_an_epoch(pair):
    for epoch in range(3):
        order = epoch_order(4, epoch, len(UNEVEN))
        plans = draw_plans(4, epoch, np.arange(len(UNEVEN)), UNEVEN, pair(1), leaders=order, size=SIZE)
        assert sorted(plans.images[0::2]) == list(range(len(UNEVEN)))


@EACH_PAIR
@pytest.mark.parametrize("anchor", ["epoch", "random"])
def test_pairs_of_unique_classes_are_those_of_fdt_with_two_images(pair, anchor):
    plans = plans_of(pair(1, unique_classes=True, anchor=anchor))
    assert np.array_equal(plans.images, plans_of(FDT(min_images=2, max_images=2, anchor=anchor)).images)
    assert (plans.classes[0::2] != plans.classes[1::2]).all()


def test_a_partner_of_another_class_is_uniform_among_the_images_of_those():
    leaders, partners = plans_of(MixUp(1, unique_classes=True)).images.reshape(-1, 2).T
    for label in range(4):
        mine = partners[UNEVEN.labels[leaders] == label]
        others = np.flatnonzero(UNEVEN.labels != label)
        assert stats.chisquare(np.bincount(mine, minlength=len(UNEVEN))[others]).pvalue > SIGNIFICANCE


def test_where_there_is_no_other_class_one_whole_image_comes():
    plans = plans_of(MixUp(1, unique_classes=True), Pool([1, 1, 1], 3), n=99)
    assert (plans.num_images() == 1).all()
    assert (plans.weights == 1).all()


def test_classes_that_may_repeat_make_fdts_images_uniform_and_as_many_as_asked_for():
    plans = plans_of(FDT(min_images=2, max_images=6, unique_classes=False))
    assert stats.chisquare(np.bincount(plans.num_images(), minlength=7)[2:]).pvalue > SIGNIFICANCE
    assert stats.chisquare(np.bincount(plans.images)).pvalue > SIGNIFICANCE
    first, second, third = (plans.images[plans.offsets[:-1][plans.num_images() > 2] + i] for i in range(3))
    assert are_independent(first, second)
    assert are_independent(second, third)


def test_weights_of_a_class_that_is_drawn_twice_add_up():
    mixing = FDT(min_images=2, max_images=6, unique_classes=False)
    plans = plans_of(mixing, n=500)
    repeats = 0
    for i, target in enumerate(batch_targets(plans, 4)):
        plan = plans[i]
        repeats += len(set(plan.classes)) < len(plan.classes)
        assert np.allclose(target, np.bincount(plan.classes, plan.weights, minlength=4), atol=1e-6)
    assert repeats > 250
    same = plans_of(MixUp(1), Pool([2] * 5, 4), n=100)
    assert (batch_targets(same, 4) == [0, 0, 1, 0]).all()


BRANCHES = {  # a smoothing of its own tells which one made an output
    MixUp(0.8, label_smoothing=0.1): 0.35,
    CutMix(1.0, label_smoothing=0.2, probability=0.4): 0.25,
    FDT(min_images=3, label_smoothing=0.3): 0.3,
    None: 0.1,
}
SMOOTHINGS = [0.1, 0.2, 0.3, 0.0]


def test_one_of_shares_its_outputs_out_as_told():
    plans = plans_of(OneOf(BRANCHES))
    counts = np.array([(plans.label_smoothing == smoothing).sum() for smoothing in SMOOTHINGS])
    assert stats.chisquare(counts, np.array([*BRANCHES.values()]) * N).pvalue > SIGNIFICANCE
    cut = plans.num_images()[plans.label_smoothing == 0.2]
    assert stats.binomtest(int((cut == 2).sum()), len(cut), 0.4).pvalue > SIGNIFICANCE
    assert (plans.num_images()[plans.label_smoothing == 0] == 1).all()
    choice = np.searchsorted(SMOOTHINGS[:3], plans.label_smoothing)
    assert are_independent(choice[:-1], choice[1:])


def test_a_mixing_that_is_chosen_makes_what_it_makes_alone():
    """Bit for bit, so that its law within OneOf is its own law."""
    plans = plans_of(OneOf(BRANCHES), n=3000)
    is_mixed = plans.num_images() > 1
    for mixing, smoothing in zip([*BRANCHES][:3], SMOOTHINGS, strict=False):
        alone = plans_of(replace(mixing, probability=1), n=3000)
        chosen = np.flatnonzero(is_mixed & (plans.label_smoothing == smoothing))
        assert len(chosen) > 250
        for i in chosen:
            for name in ("images", "weights", "dy", "dx", "flip", "box", "label_smoothing"):
                assert np.array_equal(getattr(plans[i], name), getattr(alone[i], name)), name


@EACH_ALPHA
def test_what_one_of_chooses_says_nothing_of_lambda(alpha):
    plans = plans_of(OneOf({MixUp(alpha, label_smoothing=0.1): 0.4, None: 0.1, FDT(): 0.5}))
    chosen = lambdas_of(plans)[plans.label_smoothing == 0.1]
    assert beta_pvalue(chosen, alpha) > SIGNIFICANCE


@EACH_PAIR
def test_the_share_of_mixed_outputs_is_the_probability(pair):
    mixed = int((plans_of(pair(1, probability=0.3)).num_images() == 2).sum())
    assert stats.binomtest(mixed, N, 0.3).pvalue > SIGNIFICANCE
    assert (plans_of(pair(1, probability=0), n=999).num_images() == 1).all()
    assert (plans_of(pair(1), n=999).num_images() == 2).all()


@EACH_PAIR
def test_an_output_that_is_not_mixed_is_plain_trainings(pair):
    unmixed, plain = plans_of(pair(1, probability=0), n=999), plans_of(PLAIN, n=999)
    assert np.array_equal(unmixed.images, plain.images)
    assert not unmixed.boxes.any()
    assert (unmixed.weights == 1).all()


@given(st.integers(0, 2**32), ALPHAS, st.sampled_from([(1, 1), (1, 9), (5, 8), (32, 32), (224, 176)]))
def test_weights_of_cutmix_are_the_shares_of_the_pixels(seed, alpha, size):
    """Image 1 is all 0 and image 2 all 1."""
    images = np.zeros((2, *size, 1), np.uint8)
    images[1] = 1
    plan = draw_plan(seed, 0, 0, Pool([0, 1], 2), CutMix(alpha, unique_classes=True), leader=0, size=size)
    mixed = superpose_images(plan, images)
    assert set(np.unique(mixed)) <= {0, 1}
    assert mixed.mean() == pytest.approx(plan.weights[1], abs=1e-12)
    assert plan.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "mix",
    [
        lambda s: MixUp(0.2, label_smoothing=s),
        lambda s: CutMix(1, label_smoothing=s, probability=0.5),
        lambda s: FDT(label_smoothing=s),
        lambda s: OneOf({MixUp(0.2, label_smoothing=s): 0.5, FDT(label_smoothing=s): 0.5}),
    ],
)
@pytest.mark.parametrize("smoothing", [0.05, 0.5, 0.999])
def test_label_smoothing_mixes_targets_with_the_uniform_one_whether_or_not_images_are_mixed(mix, smoothing):
    plain, smoothed = (batch_targets(plans_of(mix(s), n=500), 4) for s in (0, smoothing))
    assert np.allclose(smoothed, (1 - smoothing) * plain + smoothing / 4, atol=1e-7)
    assert np.allclose(smoothed.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "dominant"), [([0.5, 0.5], 0), ([0.25, 0.375, 0.375], 1), ([0.4, 0.6], 1), ([0.3, 0.2, 0.2, 0.3], 0)]
)
def test_the_dominant_class_is_that_of_the_heaviest_image_the_first_of_equal_ones(weights, dominant):
    n = len(weights)
    nothing = np.zeros(n, np.int64)
    plan = Plan(np.arange(n), np.arange(n)[::-1], np.array(weights), nothing, nothing, nothing.astype(bool))
    assert superpose_targets(plan, 5, "dominant").tolist() == np.eye(5)[n - 1 - dominant].tolist()


def test_a_class_of_two_light_images_is_not_the_dominant_one():
    nothing = np.zeros(3, np.int64)
    plan = Plan(np.arange(3), np.array([0, 1, 1]), np.array([0.4, 0.3, 0.3]), nothing, nothing, nothing.astype(bool))
    assert superpose_targets(plan, 2, "dominant").tolist() == [1, 0]
    assert superpose_targets(plan, 2) == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("mix", [MixUp(1, targets="dominant"), CutMix(0.2, targets="dominant", label_smoothing=0.1)])
def test_dominant_targets_of_a_pair_are_the_leaders_where_lambda_is_half_or_more(mix):
    plans = plans_of(mix, n=2000)
    leaders = lambdas_of(plans) >= 0.5
    assert leaders.any()
    assert not leaders.all()
    heavier = np.where(leaders, plans.classes[0::2], plans.classes[1::2])
    assert np.array_equal(batch_targets(plans, 4, "dominant").argmax(1), heavier)


def test_zeta_mixup_is_a_power_series_of_two_images_or_more():
    """K. Abhishek et al., arXiv 2204.03323: weights i**-2.8 / sum_j j**-2.8."""
    plans = plans_of(FDT(series=Power(2.8), min_images=2))
    assert stats.chisquare(np.bincount(plans.num_images(), minlength=5)[2:]).pvalue > SIGNIFICANCE
    for i in range(50):
        terms = [j**-2.8 for j in range(1, len(plans[i].images) + 1)]
        assert plans[i].weights == pytest.approx([term / sum(terms) for term in terms], rel=1e-6)
    assert plans.weights[plans.offsets[:-1]].min() > 0.5  # the first image outweighs all others together


def frozen(mix, index):
    plan = draw_plan(2021, 3, index, Pool(np.arange(60) % 6, 6), mix, Augment(), 7 if is_led(mix) else None, (32, 48))
    moved = plan.dy.tolist(), plan.dx.tolist(), plan.flip.tolist()
    return plan.images.tolist(), np.rint(plan.weights * LAMBDA_ONE).tolist(), plan.box, *moved, plan.label_smoothing


UNIQUE = MixUp(1, unique_classes=True, anchor="random")
ONE_OF = OneOf({MixUp(0.8, label_smoothing=0.1): 0.4, CutMix(1): 0.4, FDT(): 0.1, None: 0.1})


@pytest.mark.parametrize(
    ("mix", "index", "expected"),
    [
        (MixUp(0.2), 41, ([7, 57], [2233604, 14543612], NO_BOX, [3, 8], [5, 2], [False, True], 0)),
        (UNIQUE, 41, ([32, 16], [6010880, 10766336], NO_BOX, [3, 8], [5, 2], [False, True], 0)),
        (CutMix(1), 41, ([7, 57], [10747904, 6029312], (4, 0, 28, 23), [3, 8], [5, 2], [False, True], 0)),
        (ONE_OF, 41, ([7, 57], [5674759, 11102457], NO_BOX, [3, 8], [5, 2], [False, True], 0.1)),
        (ONE_OF, 42, ([7, 50], [10835285, 5941931], (0, 7, 17, 39), [8, 1], [6, 5], [True, True], 0)),
        (ONE_OF, 48, ([7], [LAMBDA_ONE], NO_BOX, [5], [6], [True], 0)),
        (ONE_OF, 51, ([47, 10], [11184811, 5592405], NO_BOX, [3, 2], [5, 3], [True, True], 0)),
    ],
)
def test_golden_plans(mix, index, expected):
    """Frozen: a change here changes every run that was ever made with a seed."""
    assert frozen(mix, index) == expected
