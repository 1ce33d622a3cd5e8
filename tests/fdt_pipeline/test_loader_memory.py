"""Pools in memory, and rings that are large enough for the classes."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types

from fdt_pipeline import FDT, Augment, FDTLoader, MixUp, OneOf, load_pool
from fdt_pipeline.shards import ShardError, write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, joined, members_of, overwrite
from tests.numbered import NUM_SAMPLES, numbered_images

pytestmark = pytest.mark.dali


@pipeline_def(batch_size=NUM_SAMPLES, num_threads=1, device_id=None)
def of_ones_own(pool, epoch):
    """All outputs of an epoch in one batch."""
    given = np.stack([np.full(NUM_SAMPLES, epoch), np.arange(NUM_SAMPLES)], axis=1)
    ids = fn.external_source(lambda: given, batch=True, dtype=types.INT64, ndim=1)
    return tuple(fn.fdt.superpose_resident(ids, pool=pool, plan_seed=3, pad=2, flip=True, mean=[0.0], std=[1.0]))


def test_a_pool_is_drawn_from_by_its_name_in_a_pipeline_of_ones_own(numbered_shards):
    """The operator keeps the images, whatever becomes of the object that had them read."""
    pool = load_pool(numbered_shards, pad=2, num_threads=2, name="mine")
    assert pool.name == "mine"
    pipeline = of_ones_own(pool.name, 4)
    pipeline.build()
    del pool
    gc.collect()
    found = [torch.from_numpy(np.array(output.as_tensor())) for output in pipeline.run()]
    loader = FDTLoader(numbered_shards, 46, mode="resident", seed=3, augment=Augment(pad=2), **PIXELS)
    loader.set_epoch(4)
    for one, other in zip(found, joined(loader), strict=True):
        assert torch.equal(one, other)


def of_several_sizes(folder):
    """Shards whose manifest says so."""
    manifest = write_shards(ArraySource(numbered_images(10), np.arange(10) % 5), folder)
    (folder / "manifest.json").write_text(replace(manifest, shape=None).to_json())


def damaged(folder):
    write_shards(ArraySource(numbered_images(10), np.arange(10) % 5), folder)
    tar, image, _ = members_of(folder, 3)
    overwrite(tar, image.offset + 140, 1)


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (of_several_sizes, {}, ValueError, "holds images of different sizes, and a pool's have one"),
        (damaged, {}, ShardError, r"shard-000000\.tar: .*sha256"),
        (damaged, {"pad": -1}, ValueError, "pad must be 0 or more, got -1"),
        (damaged, {"pad": 1.5}, ValueError, "pad must be a whole number, got 1.5"),
        (damaged, {"num_threads": 0}, ValueError, "num_threads must be 1 or more, got 0"),
        (damaged, {"device": "tpu"}, ValueError, 'device must be "cpu" or "cuda"'),
    ],
)
def test_a_pool_that_cannot_be_is_refused(tmp_path, make, options, error, match):
    make(tmp_path / "shards")
    with pytest.raises(error, match=match):
        load_pool(tmp_path / "shards", **options)


@pytest.mark.parametrize(
    ("ring", "fdt", "wanted"),
    [
        (6, FDT(), 7),
        (33, FDT(), 7),
        (46, FDT(), None),
        (6, None, None),
        (6, FDT(max_images=6), 6),
        (6, FDT(max_images=2), None),  # 6 samples are of one class but once in 16,807 times
        (6, FDT(probability=0), None),
        (6, FDT(unique_classes=False, max_images=6), None),
        (6, MixUp(0.2), None),
        (6, OneOf([(FDT(max_images=6), 0.5), (MixUp(0.2), 0.5)]), 6),
    ],
)
def test_a_ring_too_small_for_the_images_of_a_sum_warns(numbered_shards, ring, fdt, wanted):
    def targets_of_an_epoch():
        return joined(FDTLoader(numbered_shards, 6, mode="streaming", ring=ring, mix=fdt))[1]

    if not wanted:
        targets_of_an_epoch()  # a warning would be an error
        return
    advice = f"ring of {ring} samples will often hold fewer than {wanted} classes.*ring={10 * wanted}"
    with pytest.warns(UserWarning, match=advice):
        assert (targets_of_an_epoch() > 0).sum(1).max() <= min(wanted, ring)


def test_a_batch_too_small_for_the_images_of_a_sum_warns_where_images_are_mixed_within_it(numbered_shards):
    advice = (
        r"batch of 6 samples, .* often hold fewer than 7 classes.*: pass batch_size=70 or more, or partners=\"ring\""
    )
    with pytest.warns(UserWarning, match=advice):
        FDTLoader(numbered_shards, 6, mix=FDT(partners="batch"))
    for mix in (FDT(partners="ring"), MixUp(0.2, partners="batch")):
        FDTLoader(numbered_shards, 6, mix=mix)  # a warning would be an error


@pytest.fixture(scope="module")
def sorted_shards(tmp_path_factory):
    """Ten classes of 20 samples one after the other, as a foreign set may have them; our own order mixes them."""
    folder = tmp_path_factory.mktemp("sorted") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fdt_pipeline.shards.plan.interleaved_order", lambda labels, *_: np.arange(len(labels)))
        write_shards(ArraySource(numbered_images(200), np.arange(200) // 20), folder, samples_per_shard=20)
    return folder


def test_rings_that_lack_classes_are_counted_and_warned_of_with_a_ring_that_does(sorted_shards):
    loader = FDTLoader(sorted_shards, 20, mode="streaming", ring=60)
    advice = r"the ring of 60 samples lacks classes: it has \d of 10.*pass ring=44 or more.*shuffle the set"
    with pytest.warns(UserWarning, match=advice) as caught:
        _, targets = joined(loader)
    list(loader)
    assert len(caught) == 1
    stats = loader.stats
    assert stats.images_per_output_of_all == 5.5
    assert 2 < stats.images_per_output < 5
    assert (targets > 0).sum(1).float().mean().item() == pytest.approx(stats.images_per_output, abs=0.6)


def test_batches_that_lack_classes_are_warned_of_where_images_are_mixed_within_them(sorted_shards):
    """Each of few classes. What was found with another mix before does not count."""
    loader = FDTLoader(sorted_shards, 40, mode="streaming", ring=40, mix=MixUp(0.2))
    list(loader)
    assert loader.stats.images_per_output == loader.stats.images_per_output_of_all == 2
    loader.mix = FDT(partners="batch")
    advice = r"the batch of 40 samples lacks classes: .* pass batch_size=44 or partners=\"ring\", and shuffle the set"
    with pytest.warns(UserWarning, match=advice) as caught:
        list(loader)
    assert len(caught) == 1
    assert loader.stats.images_per_output_of_all == (2 + 5.5) / 2


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (MixUp(0.2), 2),
        (MixUp(0.2, probability=0.25, partners="batch"), 1.25),
        (OneOf([(MixUp(0.2), 0.5), (FDT(max_images=3, min_images=2), 0.25), (None, 0.25)]), 1.875),
    ],
)
def test_statistics_say_how_many_images_an_output_is_made_of(numbered_shards, mix, expected):
    loader = FDTLoader(numbered_shards, 46, mode="streaming", mix=mix)
    list(loader)
    assert loader.stats.images_per_output == loader.stats.images_per_output_of_all == expected
