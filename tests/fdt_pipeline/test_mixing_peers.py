"""MixUp and CutMix against torchvision's and timm's, which are fed with the same numbers. Classes repeat, so that a
wrong target is seen: torchvision's own test has a class for each image.

Which modes of timm's Mixup have a counterpart. In all of them an output has the image and the target of ours, given
lambda and partner, and lambda's law is ours; they differ in which outputs share a lambda.
    "elem"   ours: lambda, and MixUp or CutMix, are drawn for each output. switch_prob p is `OneOf({MixUp(a): 1 - p,
             CutMix(b): p})`, and prob is the `probability` of both. Its partner is the mirror image in the batch
             (`partners="batch"` draws one there), ours by default any image of the set.
    "pair"   none: two outputs, each the other's partner, share a lambda
    "batch"  none: a batch shares one lambda, as with torchvision's
    "half"   none: as "elem", for the first half of a batch, whose outputs are half as many, in whole grey levels
Its label_smoothing, of the labels before they are mixed, is ours, of the mixed target. Its box of an odd side is a
pixel longer than ours and torchvision's; its `cutmix_minmax` and `correct_lam=False` have no counterpart.
"""

from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from fdt_pipeline.definition.mixing import LAMBDA_ONE, CutMix, MixUp, OneOf, beta_quantiles
from fdt_pipeline.definition.philox import Stream, bounded32, random_words
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.superposition import (
    Augment,
    Pool,
    augment_image,
    draw_plan,
    standardize,
    superpose_images,
    superpose_targets,
)
from tests.peers import peer

SIGNIFICANCE = 1e-4  # with fixed seeds: a law that holds fails never, a wrong one practically always
C, N, SEED, EPOCH, PAD = 4, 20, 5, 2, 2
MEAN, STD = (122.0, 117.0, 104.0), (256.0, 250.0, 240.0)
SIZES = pytest.mark.parametrize("size", [(32, 32), (5, 8), (7, 7), (33, 48), (97, 64)])
ALPHAS = pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])


def cases(mix, size, number=16):
    """Outputs of the definition, and what a peer is to be fed with to make the same."""
    images = np.random.default_rng(0).integers(0, 256, (N, *size, 3), np.uint8)
    pool = Pool(np.arange(N) % C, C)
    for index in range(number):
        plan = draw_plan(SEED, EPOCH, index, pool, mix, Augment(PAD), index % N, size)
        words = random_words(SEED, Stream.PLAN, EPOCH, index, 0)
        moved = [
            augment_image(images[image], dy, dx, flip, PAD)
            for image, dy, dx, flip in zip(plan.images, plan.dy, plan.dx, plan.flip, strict=True)
        ]
        yield SimpleNamespace(
            plan=plan,
            lam=beta_quantiles(mix.alpha)[words[0] >> 20] / LAMBDA_ONE,
            middle=(int(bounded32(words[3], size[0])), int(bounded32(words[1], size[1]))),
            pair=torch.from_numpy(np.stack([standardize(image, MEAN, STD) for image in moved]))
            .float()
            .permute(0, 3, 1, 2),
            labels=torch.from_numpy(plan.classes),
            image=standardize(superpose_images(plan, images, PAD), MEAN, STD).transpose(2, 0, 1),
            target=superpose_targets(plan, C),
        )


def check(case, image, target):
    assert np.abs(image.numpy() - case.image).max() < 2e-6
    assert np.abs(target.numpy() - case.target).max() < 1e-6


def by_torchvision(transform, case, monkeypatch):
    """Image and target of a batch of two, the partner first: torchvision mixes each with the one before it."""
    numbers = iter([case.middle[1], case.middle[0]])
    monkeypatch.setattr(
        transform, "_dist", SimpleNamespace(sample=lambda _: torch.tensor([case.lam], dtype=torch.float64))
    )
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor([next(numbers)]))
    images, targets = transform(case.pair.flip(0), case.labels.flip(0))
    return images[1], targets[1]


@ALPHAS
@SIZES
def test_mixup_equals_torchvisions(alpha, size, monkeypatch):
    repeats = 0
    for case in cases(MixUp(alpha), size):
        check(case, *by_torchvision(v2.MixUp(alpha=alpha, num_classes=C), case, monkeypatch))
        repeats += case.labels[0] == case.labels[1]
    assert repeats > 1


@ALPHAS
@SIZES
def test_cutmix_equals_torchvisions(alpha, size, monkeypatch):
    areas = []
    for case in cases(CutMix(alpha), size):
        check(case, *by_torchvision(v2.CutMix(alpha=alpha, num_classes=C), case, monkeypatch))
        areas.append(case.plan.weights[1])
    assert 0 < np.mean(areas) < 1


def torchvision_boxes(alpha, size, n=8000):
    """i64[n 4]: top, left, bottom, right, and pixels of the first image that are left, i64[n]."""
    transform, image = v2.CutMix(alpha=alpha, num_classes=C), [torch.empty(1, 3, *size)]
    torch.manual_seed(0)
    params = [transform.make_params(image) for _ in range(n)]
    left = np.array([param["lam_adjusted"] for param in params]) * np.prod(size)
    return np.array([param["box"] for param in params])[:, [1, 0, 3, 2]], np.rint(left)


def our_boxes(alpha, size, n=100_000):
    """The same of the definition's plans, from their boxes and their weights."""
    plans = draw_plans(SEED, EPOCH, np.arange(n), Pool([0, 1], 2), CutMix(alpha), leaders=np.arange(n) % 2, size=size)
    return plans.boxes, np.rint(plans.weights[0::2].astype(np.float64) * np.prod(size))


def joint_pvalue(first, second, size):
    """Chi-square of the joint law of a box's middle and sides, each in four parts; rare cells are put together."""

    def cells(boxes):
        ends = boxes.reshape(-1, 2, 2)
        both = np.concatenate([ends.sum(1) / 2, ends[:, 1] - ends[:, 0]], axis=1)
        return np.bincount((both * 4 // (np.array([*size, *size]) + 1)).astype(int) @ [64, 16, 4, 1], minlength=256)

    table = np.stack([cells(first), cells(second)])
    rare = table.min(0) < 8
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
    return stats.chi2_contingency(table[:, table.any(0)]).pvalue


@pytest.mark.parametrize(("alpha", "size"), [(1.0, (32, 32)), (0.2, (33, 48)), (1.0, (5, 8)), (1.0, (224, 176))])
def test_boxes_and_areas_have_torchvisions_law(alpha, size):
    (boxes, areas), (their_boxes, their_areas) = our_boxes(alpha, size), torchvision_boxes(alpha, size)
    assert stats.ks_2samp(areas, their_areas).pvalue > SIGNIFICANCE
    assert joint_pvalue(boxes, their_boxes, size) > SIGNIFICANCE
    for side in range(4):
        ends = np.stack([np.bincount(part[:, side], minlength=max(size) + 1) for part in (boxes, their_boxes)])
        assert stats.chi2_contingency(ends[:, ends.min(0) >= 8]).pvalue > SIGNIFICANCE


def test_another_alpha_a_longer_box_and_sides_of_two_boxes_are_told_from_it():
    size = (32, 32)
    (boxes, _), (theirs, their_areas) = our_boxes(1.0, size), torchvision_boxes(1.0, size)
    assert stats.ks_2samp(our_boxes(0.75, size)[1], their_areas).pvalue < SIGNIFICANCE
    assert joint_pvalue(np.minimum(boxes + np.array([0, 0, 1, 1]), 32), theirs, size) < SIGNIFICANCE
    of_two = np.where([True, False, True, False], boxes, np.roll(boxes, 1, axis=0))
    assert joint_pvalue(of_two, theirs, size) < SIGNIFICANCE


@pytest.fixture(scope="module")
def timm_mixup():
    return peer("timm.data.mixup")


def by_timm(mixer, case, monkeypatch):
    """Image and target of the first of a batch of two, the leader and its partner."""
    numbers = cycle(case.middle)  # "elem" draws a box for each of both
    monkeypatch.setattr(np.random, "beta", lambda a, b, size=None: np.full(size or (), case.lam))
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: next(numbers))
    images, targets = mixer(case.pair.clone(), case.labels)
    return images[0], targets[0]


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("mode", ["elem", "pair", "batch"])
@ALPHAS
def test_mixup_equals_timms_given_lambda_in_every_mode(timm_mixup, mode, alpha, smoothing, monkeypatch):
    mixer = timm_mixup.Mixup(alpha, mode=mode, label_smoothing=smoothing, num_classes=C)
    for case in cases(MixUp(alpha, label_smoothing=smoothing), (9, 12)):
        check(case, *by_timm(mixer, case, monkeypatch))


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["elem", "pair", "batch"])
@SIZES
def test_cutmix_equals_timms_in_every_mode_where_the_sides_of_its_box_are_even(
    timm_mixup, mode, size, smoothing, monkeypatch
):
    mixer = timm_mixup.Mixup(0, 1.0, mode=mode, label_smoothing=smoothing, num_classes=C)
    even = 0
    for case in cases(CutMix(1.0, label_smoothing=smoothing), size, 40):
        sides = [int(length * np.sqrt(1 - case.lam)) for length in size]
        if sides[0] % 2 == sides[1] % 2 == 0:
            check(case, *by_timm(mixer, case, monkeypatch))
            even += 1
    assert even > 5


@pytest.mark.peer
@SIZES
def test_timms_box_is_ours_or_a_pixel_longer_at_the_bottom_and_the_right_where_its_side_is_odd(
    timm_mixup, size, monkeypatch
):
    for case in cases(CutMix(1.0), size):
        numbers = iter(case.middle)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None, numbers=numbers: next(numbers))
        top, bottom, left, right = timm_mixup.rand_bbox((3, *size), case.lam)
        longer = [int(length * np.sqrt(1 - case.lam)) % 2 for length in size]
        ours = case.plan.box
        assert (top, left) == ours[:2]
        assert (bottom, right) == tuple(
            min(end + more, length) for end, more, length in zip(ours[2:], longer, size, strict=True)
        )


@pytest.mark.peer
def test_timms_half_mode_is_mixup_in_whole_grey_levels_for_half_of_the_outputs(timm_mixup, monkeypatch):
    mixer = timm_mixup.FastCollateMixup(1.0, mode="half", label_smoothing=0.1, num_classes=C)
    for case in cases(MixUp(1.0, label_smoothing=0.1), (9, 12)):
        monkeypatch.setattr(np.random, "beta", lambda a, b, size, lam=case.lam: np.full(size, lam))
        u8 = np.rint(case.pair.permute(0, 2, 3, 1).numpy() * STD + MEAN).astype(np.uint8).transpose(0, 3, 1, 2)
        images, targets = mixer([(image, int(label)) for image, label in zip(u8, case.labels, strict=True)])
        assert len(images) == len(targets) == 1
        grey = case.image.transpose(1, 2, 0) * STD + MEAN
        assert np.abs(images[0].permute(1, 2, 0).numpy() - grey).max() < 0.501
        assert np.abs(targets[0].numpy() - case.target).max() < 1e-6


@pytest.mark.peer
def test_timms_switch_between_mixup_and_cutmix_is_one_of_both_with_a_probability(timm_mixup):
    n = 100_000
    mixer = timm_mixup.Mixup(0.8, 1.0, prob=0.6, switch_prob=0.3, mode="elem", num_classes=C)
    np.random.seed(0)  # noqa: NPY002 - what timm draws from
    lambdas, use_cutmix = mixer._params_per_elem(n)
    theirs = np.where(lambdas == 1, 0, np.where(use_cutmix, 2, 1))
    mix = OneOf({MixUp(0.8, probability=0.6): 0.7, CutMix(1.0, probability=0.6): 0.3})
    size = (2048, 2048)  # so large that no box is empty
    plans = draw_plans(SEED, EPOCH, np.arange(n), Pool([0, 1], 2), mix, leaders=np.arange(n) % 2, size=size)
    ours = np.where(plans.num_images() == 1, 0, np.where(plans.boxes.any(1), 2, 1))
    table = np.stack([np.bincount(kinds, minlength=3) for kinds in (theirs, ours)])
    assert stats.chi2_contingency(table).pvalue > SIGNIFICANCE
    weights = plans.weights[plans.offsets[:-1]].astype(np.float64)
    assert stats.ks_2samp(lambdas[theirs == 1], weights[ours == 1]).pvalue > SIGNIFICANCE
