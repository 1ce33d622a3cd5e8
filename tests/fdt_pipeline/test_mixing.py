"""Options of the mixings, and what is made of them once: the table of Beta's quantiles, and who decides an output."""

import math
from fractions import Fraction

import numpy as np
import pytest

from fdt_pipeline.definition.mixing import (
    FDT,
    LAMBDA_ONE,
    PLAIN,
    CutMix,
    MixUp,
    OneOf,
    beta_quantiles,
    branches,
    is_led,
)
from fdt_pipeline.definition.series import Power, Uniform
from fdt_pipeline.definition.superposition import Pool, draw_plan

SINGLES = pytest.mark.parametrize(
    "mixing", [FDT, lambda **given: MixUp(1.0, **given), lambda **given: CutMix(1.0, **given)]
)
ALPHAS = [1e-300, 1e-3, 0.05, 0.2, 1, 8, 1e6, 1e15, 1e300]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lambda_and_one_minus_lambda_have_the_same_quantiles(alpha):
    table = beta_quantiles(alpha)
    assert np.array_equal(table, LAMBDA_ONE - table[::-1])
    assert (np.diff(table) >= 0).all()
    assert 0 <= table[0] <= table[-1] <= LAMBDA_ONE


@pytest.mark.parametrize("alpha", ALPHAS)
def test_both_weights_of_a_pair_are_floats_of_32_bits_with_sum_one(alpha):
    weights = np.stack([beta_quantiles(alpha), LAMBDA_ONE - beta_quantiles(alpha)]) / LAMBDA_ONE
    assert np.array_equal(weights.astype(np.float32).astype(np.float64), weights)
    assert (weights.astype(np.float32).sum(0) == 1).all()


@pytest.mark.parametrize("pair", [MixUp, CutMix])
@pytest.mark.parametrize(
    ("alpha", "match"),
    [
        (0, r"alpha must be above 0 and finite \(from .*\), got 0; for no mixing pass mix=None"),
        (math.inf, r"alpha must be above 0 and finite \(from .*\), got inf"),
        (-0.2, r"alpha must be above 0 and finite \(from .*\), got -0.2$"),
        (math.nan, r"alpha must be above 0 and finite \(from .*\), got nan"),
        (1e-310, "alpha must be above 0 and finite"),
        (10**400, "alpha must be above 0 and finite"),
        (-math.inf, r"alpha must be above 0 and finite \(from .*\), got -inf"),
        ("1.0", "alpha must be a number, got '1.0'"),
        (None, "alpha must be a number, got None"),
        (True, "alpha must be a number, got True"),
        (Fraction(1, 2), "alpha must be a number"),
        ([0.2], "alpha must be a number"),
    ],
)
def test_an_alpha_that_beta_does_not_take_is_refused(pair, alpha, match):
    with pytest.raises(ValueError, match=f"^{pair.__name__}: {match}"):
        pair(alpha)


@SINGLES
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"probability": -0.1}, r"probability must be in \[0, 1\], got -0.1"),
        ({"probability": 1.5}, r"probability must be in \[0, 1\], got 1.5"),
        ({"probability": math.nan}, r"probability must be in \[0, 1\], got nan"),
        ({"probability": True}, "probability must be a number, got True"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\], got -0.1"),
        ({"label_smoothing": 1}, "label_smoothing must be below 1"),
        ({"label_smoothing": 10}, r"label_smoothing must be in \[0, 1\], got 10"),
        ({"label_smoothing": "0.1"}, "label_smoothing must be a number, got '0.1'"),
        ({"unique_classes": 1}, "unique_classes must be True or False, got 1"),
        ({"unique_classes": "no"}, "unique_classes must be True or False, got 'no'"),
        ({"partners": "all"}, 'partners must be "set" or "ring" or "batch" or None, got \'all\''),
        ({"anchor": "first"}, 'anchor must be "random" or "epoch", got \'first\''),
        ({"targets": "hard"}, 'targets must be "soft" or "dominant", got \'hard\''),
    ],
)
def test_options_that_all_have_are_refused_out_of_range(mixing, options, match):
    with pytest.raises(ValueError, match=match):
        mixing(**options)


HALF = {MixUp(0.8): 0.5, CutMix(1.0): 0.5}


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({}, "expected 1 to 8 mixings with their shares, got 0"),
        ({MixUp(alpha): 1 / 9 for alpha in range(1, 10)}, "expected 1 to 8 mixings with their shares, got 9"),
        ({None: 1.0}, "None alone mixes nothing: pass mix=None"),
        ([(None, 0.5), (None, 0.5)], "None alone mixes nothing"),
        ([(OneOf(HALF), 1.0)], r"expected FDT, MixUp, CutMix or None, got OneOf"),
        ({MixUp: 1.0}, "expected FDT, MixUp, CutMix or None, got <class"),
        ({MixUp(1.0): 0.5, CutMix(1.0): 0.6}, "the shares must sum to 1, got 1.1: divide them by 1.1"),
        (
            {MixUp(1.0): 0.5},
            r"the shares must sum to 1, got 0.5: add None for whole images \(a dict keeps one of equal mixings",
        ),
        ({MixUp(1.0): 1.5, CutMix(1.0): -0.5}, r"share of MixUp\(alpha=1.0\) must be in \[0, 1\], got 1.5"),
        ({CutMix(1.0): -0.5, MixUp(1.0): 1.5}, r"share of CutMix\(alpha=1.0\) must be in \[0, 1\], got -0.5"),
        ({MixUp(1.0): math.nan}, "must be in"),
        ({MixUp(1.0): True}, "must be a number, got True"),
        ({MixUp(1.0): "all"}, "must be a number, got 'all'"),
        (
            {MixUp(1.0, partners="batch"): 0.5, CutMix(1.0): 0.5},
            "same partners, got 'batch', None: give it to each",
        ),
        ({FDT(targets="dominant"): 0.5, CutMix(1.0): 0.5}, "must have the same targets, got 'dominant', 'soft'"),
        (None, "expected mixings with their shares"),
        (MixUp(1.0), "expected mixings with their shares"),
        ([MixUp(1.0), CutMix(1.0)], "expected mixings with their shares"),
        ("mixup", "expected mixings with their shares"),
    ],
)
def test_choices_that_are_none_are_refused(choices, match):
    with pytest.raises(ValueError, match=f"^OneOf: .*{match}"):
        OneOf(choices)


@pytest.mark.parametrize("option", ["probability", "label_smoothing"])
def test_shares_of_16_bits_are_floats_of_python(option):
    share = getattr(MixUp(1, **{option: np.float16(0.3)}), option)
    assert type(share) is float
    assert share == float(np.float16(0.3))


@pytest.mark.parametrize("options", [{"max_images": 2**31}, {"min_images": 65_537}])
def test_a_sum_of_too_many_images_is_refused_before_its_weights_are_made(options):
    with pytest.raises(ValueError, match="FDT: an output is a sum of up to 65,536 images, got FDT"):
        FDT(**options, unique_classes=False).check_classes(10)


@pytest.mark.parametrize("pair", [MixUp, CutMix])
def test_a_single_class_is_refused_only_where_classes_must_differ(pair):
    pair(1.0).check_classes(1)
    FDT(unique_classes=False).check_classes(1)
    with pytest.raises(ValueError, match="unique_classes=True mixes images of different classes and needs 2 or more"):
        pair(1.0, unique_classes=True).check_classes(1)
    with pytest.raises(ValueError, match="needs 2 or more"):
        OneOf({pair(1.0): 0.5, pair(1.0, unique_classes=True): 0.5}).check_classes(1)


def test_cutmix_of_images_without_a_size_is_refused():
    with pytest.raises(ValueError, match=r"CutMix needs the size of the images: pass size=\(height, width\)"):
        draw_plan(0, 0, 0, Pool([0, 1], 2), CutMix(1.0), leader=0)


@pytest.mark.parametrize(
    ("mix", "text"),
    [
        (MixUp(1), "MixUp(alpha=1.0)"),
        (CutMix(0.2, unique_classes=True), "CutMix(unique_classes=True, alpha=0.2)"),
        (FDT(series=Power(2.8), min_images=2), "FDT(min_images=2, series=Power(gamma=2.8))"),
        (OneOf(HALF), "OneOf({MixUp(alpha=0.8): 0.5, CutMix(alpha=1.0): 0.5})"),
        (OneOf({MixUp(1): 1 / 3, None: 2 / 3}), f"OneOf({{MixUp(alpha=1.0): {1 / 3!r}, None: {2 / 3!r}}})"),
    ],
)
def test_what_is_printed_makes_the_same_again(mix, text):
    assert repr(mix) == text
    assert eval(text) == mix
    assert hash(eval(text)) == hash(mix)


def test_mixings_of_other_options_are_not_equal():
    """So that a run that is resumed with another one is told."""
    different = [
        MixUp(1),
        MixUp(0.2),
        CutMix(1),
        MixUp(1, label_smoothing=0.1),
        FDT(),
        OneOf({MixUp(1): 1}),
        OneOf(HALF),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    "shares",
    [
        (1.0,),
        (0.5, 0.5),
        (0.3, 0.3, 0.4),
        (1 / 7,) * 7,
        (0.0, 1.0),
        (1e-9, 1 - 1e-9),
        (0.5, 0.4999995),
        (0.60000002, 0.4, 0.0),
    ],
)
def test_branches_share_out_every_random_word(shares):
    found = branches(OneOf([(MixUp(1.0, probability=0.25), share) for share in shares]))
    assert [found[0].begin, *(branch.end for branch in found)] == [*(branch.begin for branch in found), 2**32]
    for branch, share in zip(found, shares, strict=True):
        assert branch.end - branch.begin == pytest.approx(share * 2**32, abs=2500)
        assert branch.mixed_end - branch.begin == pytest.approx(0.25 * share * 2**32, abs=2500)


def test_whole_images_lead_once_an_epoch_beside_mixings_that_draw_their_first_image():
    assert is_led(MixUp(1.0))
    assert not is_led(FDT())
    assert is_led(OneOf({FDT(): 0.5, None: 0.5}))
    assert branches(OneOf({FDT(series=Uniform()): 0.5, None: 0.5}))[1].mixing == PLAIN
