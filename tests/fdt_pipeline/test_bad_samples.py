"""Samples that are what was written, yet DALI does not decode them."""

import re

import pytest
from PIL import Image

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import reading
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, assert_same, numbers_of
from tests.numbered import LABELS, numbered_images

pytestmark = pytest.mark.dali

BAD = {17, 18, 100, 229}


@pytest.fixture(params=["Pillow", "DALI"])
def found_by(request, monkeypatch):
    """Who finds the bad samples. Pillow refuses them too, so it is made to take them where DALI is the one."""
    if request.param == "DALI":
        monkeypatch.setattr("fdt_pipeline.loader.bad_samples.decode_image", lambda data, channels: None)
    return request.param


@pytest.fixture
def spoilt_shards(tmp_path, monkeypatch):
    """Png shards; the bad samples are damaged though nothing has changed since they were written."""
    whole = reading.Chunk.image

    def image(chunk, number):
        file = whole(chunk, number)
        if int(chunk.key(number)) in BAD:
            file = file.copy()
            file[45:60] = 0
        return file

    monkeypatch.setattr(reading.Chunk, "check", lambda chunk, checksums: None)
    monkeypatch.setattr(reading.Chunk, "image", image)
    write_shards(ArraySource(numbered_images(), LABELS), tmp_path / "shards", "png", samples_per_shard=60)
    return tmp_path / "shards"


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_undecodable_sample_is_an_error_that_names_shard_and_key(spoilt_shards, prefetch, found_by):
    loader = FDTLoader(spoilt_shards, 46, mode="streaming", ring=46, train=False, prefetch=prefetch)
    with pytest.raises(RuntimeError, match=r"batch \d of epoch 0: .* could not be read or decoded") as caught:
        list(loader)
    key, reason = re.findall(r"shard-00000\d.tar: sample (\d+): (.*?)(?:; |$)", str(caught.value))[0]
    assert int(key) in BAD
    reasons = {"Pillow": "not a readable image (", "DALI": "DALI does not decode it, though Pillow does"}
    assert reason.startswith(reasons[found_by])


@pytest.mark.usefixtures("found_by")
def test_an_undecodable_sample_is_substituted_after_dali_has_failed(spoilt_shards):
    """Wherever DALI is ahead of the consumer when it fails with a whole batch; no batch is lost or repeated."""
    options = {"mode": "streaming", "ring": 46, "mix": None, "augment": None, "on_bad": "substitute", **PIXELS}
    epochs = []
    for num_threads, prefetch in ((1, 0), (4, 3), (2, 1)):
        loader = FDTLoader(spoilt_shards, 23, num_threads=num_threads, prefetch=prefetch, **options)
        with pytest.warns(UserWarning, match="another sample takes the place of a bad one") as caught:
            epochs.append(list(loader))
        assert len(caught) == loader.stats.bad_samples == 4
        assert loader.stats.batches == 10
        loader.set_epoch(0)
        epochs.append(list(loader))  # now that they are known, nothing fails
        assert loader.stats.bad_samples == 8
        assert len(loader.stats.bad) == 4
    assert set(numbers_of(epochs[0])) == set(range(230)) - BAD
    for epoch in epochs[1:]:
        assert_same(epoch, epochs[0])


def test_images_over_pillows_limit_of_pixels_are_not_found_bad_beside_one_that_is(spoilt_shards, monkeypatch):
    """DALI has no limit. Here every image is over it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    options = {"mode": "streaming", "ring": 46, "mix": None, "on_bad": "substitute"}
    loader = FDTLoader(spoilt_shards, 23, **options)
    with pytest.warns(UserWarning, match="another sample takes the place of a bad one"):
        list(loader)
    assert loader.stats.bad_samples == 4
