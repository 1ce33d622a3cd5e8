"""What a loader asks of a mix, for every kind of it: its description in a state, its mean K, the classes it wants."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp, OneOf, is_led
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.series import Power
from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.loader.mixes import MixContext, classes_wanted, describe_mix, described_mix, mean_images
from tests.loading import of_partners
from tests.mixes import mixes

NUM_CLASSES = 5
CONTEXT = MixContext(NUM_CLASSES, NUM_CLASSES, "streaming", batch_size=8, smallest_batch=8)


def own_is_none():
    """The mix of a loader in another process, which is no help."""
    return None


def from_state(described, own=own_is_none):
    """The mix that another process makes of a description."""
    return described_mix(json.loads(json.dumps(described)), CONTEXT, own)


@given(mix=mixes(), partners=st.sampled_from([None, "ring", "batch"]))
def test_every_mixing_is_made_again_of_its_description_in_another_process(mix, partners):
    mix = of_partners(mix, partners)
    assert from_state(describe_mix(mix, NUM_CLASSES)) == mix


@given(one=mixes(), other=mixes())
def test_mixings_that_differ_are_described_differently(one, other):
    assert (describe_mix(one, NUM_CLASSES) == describe_mix(other, NUM_CLASSES)) == (one == other)


@pytest.mark.parametrize(
    ("mix", "described"),
    [
        (
            FDT(),
            {
                "min_images": 1, "max_images": None, "probability": 1.0, "anchor": "random", "targets": "soft",
                "series": {"name": "Harmonic", "weights": "f47cb8b67217"},
            },
        ),
        (
            FDT(min_images=2, series=Power(2.8), anchor="epoch", probability=0.5, targets="dominant"),
            {
                "min_images": 2, "max_images": None, "probability": 0.5, "anchor": "epoch", "targets": "dominant",
                "series": {"name": "Power", "weights": "c66381351c84", "gamma": 2.8},
            },
        ),
    ],
)  # fmt: skip
def test_an_fdt_is_described_as_before_there_were_others_so_that_old_states_are_loaded(mix, described):
    assert describe_mix(mix, 7) == described
    assert described_mix(described, MixContext(7, 7, "resident", 8, 8), own_is_none) == mix


@dataclass(frozen=True)
class Halves:
    """The weights of no series of the package."""

    def weights(self, k):
        return np.append(2.0 ** -np.arange(1, k), 2.0 ** -(k - 1))


@pytest.mark.parametrize("mix", [FDT(series=Halves()), OneOf([(FDT(series=Halves()), 0.5), (MixUp(0.2), 0.5)])])
def test_a_series_of_ones_own_is_known_again_by_its_weights_but_cannot_be_made(mix):
    described = describe_mix(mix, NUM_CLASSES)
    assert from_state(described, lambda: mix) == mix
    for own in (None, FDT(), OneOf([(FDT(), 0.5), (MixUp(0.2), 0.5)])):
        with pytest.raises(ValueError, match=r"a mix that cannot be made of it, .*Halves.*: set loader\.mix"):
            from_state(described, lambda own=own: own)


@pytest.mark.parametrize("described", [{}, {"name": "Mosaic"}, {"name": "MixUp"}, {"one_of": []}, "a function", 3])
def test_what_describes_no_mixing_is_refused(described):
    with pytest.raises(ValueError, match="the state was taken with a mix that cannot be made of it"):
        from_state(described)


@settings(max_examples=60)
@given(mix=mixes(), labels=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_the_mean_number_of_images_is_that_of_the_plans(mix, labels):
    """Of classes at hand, which may be fewer than there are."""
    pool, indices = Pool(np.array(labels), NUM_CLASSES), np.arange(4000)
    leaders = np.zeros(len(indices), np.int64) if is_led(mix) else None
    found = draw_plans(1, 0, indices, pool, mix, leaders=leaders, size=(4, 4)).num_images()
    assert abs(found.mean() - mean_images(mix, len(set(labels)))) <= 6 * max(found.std(), 1e-9) / np.sqrt(len(indices))


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        (None, 1),
        (FDT(), NUM_CLASSES),
        (FDT(max_images=3), 3),
        (FDT(probability=0), 1),
        (FDT(unique_classes=False), NUM_CLASSES),  # K is up to the number of classes
        (FDT(unique_classes=False, max_images=3), 1),
        (MixUp(0.2), 1),
        (CutMix(1.0, unique_classes=True), 2),
        (OneOf([(MixUp(0.2), 0.5), (FDT(max_images=4), 0.25), (CutMix(1.0, unique_classes=True), 0.25)]), 4),
        (OneOf([(MixUp(0.2), 1.0), (FDT(), 0.0)]), 1),
    ],
)
def test_classes_are_wanted_where_they_may_not_repeat(mix, wanted):
    assert classes_wanted(mix, NUM_CLASSES) == wanted
    if mix:
        assert mean_images(mix, wanted) == mean_images(mix, NUM_CLASSES)
        assert wanted == 1 or mean_images(mix, wanted - 1) < mean_images(mix, NUM_CLASSES)
