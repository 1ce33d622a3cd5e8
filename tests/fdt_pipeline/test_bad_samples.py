"""Samples that are what was written, yet DALI does not decode them."""

import numpy as np
import pytest

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import reading
from fdt_pipeline.loader.bad_samples import find_bad
from fdt_pipeline.loader.graphs import Decoding
from fdt_pipeline.shards import write_shards
from fdt_pipeline.shards.codec import encode
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, assert_same, numbers_of
from tests.numbered import LABELS, numbered_images

pytestmark = pytest.mark.dali

DECODING = Decoding(True, 3)


def png(number):
    return np.frombuffer(encode(numbered_images(12)[number], "png"), np.uint8)


def window_of(images):
    return reading.Window(images, np.zeros((len(images), 1), np.int64), np.arange(len(images)), (), {})


class Manifest:
    encoding, channels = "png", 3


def damaged(image):
    """A png whose checksums do not fit."""
    image = image.copy()
    image[45:60] = 0
    return image


def test_a_broken_file_is_found_with_pillows_reason():
    images = [png(i) for i in range(12)]
    images[5] = images[5][:-20]
    found = find_bad(window_of(images), Manifest, DECODING)
    assert list(found) == [5]
    assert "DALI" not in found[5]
    assert find_bad(window_of([png(i) for i in range(12)]), Manifest, DECODING) == {}


@pytest.mark.parametrize("bad", [{0}, {11}, {3, 4, 9}, set(range(12))])
def test_what_pillow_decodes_is_tried_with_dali_in_halves(monkeypatch, bad):
    """Pillow is made to see nothing wrong, as with formats of which DALI knows less."""
    monkeypatch.setattr("fdt_pipeline.loader.bad_samples.decode_image", lambda data, channels: None)
    images = [damaged(png(i)) if i in bad else png(i) for i in range(12)]
    found = find_bad(window_of(images), Manifest, DECODING)
    assert found == dict.fromkeys(sorted(bad), "DALI does not decode it, though Pillow does")


def test_raw_images_are_never_in_doubt():
    assert find_bad(window_of(numbered_images(3)), Manifest, DECODING) == {}
    assert find_bad(window_of(list(numbered_images(3))), Manifest, Decoding(False, 3)) == {}


@pytest.fixture
def spoilt_shards(tmp_path, monkeypatch):
    """Png shards with four samples that do not decode though nothing has changed since they were written."""
    bad = {17, 18, 100, 229}
    monkeypatch.setattr(reading.Chunk, "check", lambda chunk, checksums: None)
    whole = reading.Chunk.image

    def image(chunk, number):
        file = whole(chunk, number)
        return damaged(file) if int(chunk.key(number)) in bad else file

    monkeypatch.setattr(reading.Chunk, "image", image)
    write_shards(ArraySource(numbered_images(), LABELS), tmp_path / "shards", "png", samples_per_shard=60)
    return tmp_path / "shards", bad


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_undecodable_sample_is_an_error_that_names_shard_and_key(spoilt_shards, prefetch):
    folder, _ = spoilt_shards
    loader = FDTLoader(folder, 46, mode="streaming", mix_window=46, train=False, prefetch=prefetch)
    with pytest.raises(RuntimeError, match=r"window \d of epoch 0: .* could not be read or decoded.*shard-00000\d.tar"):
        list(loader)


def test_an_undecodable_sample_is_substituted_after_dali_has_failed(spoilt_shards):
    """Wherever DALI is ahead of the consumer when it fails with a whole window; no batch is lost or repeated."""
    folder, bad = spoilt_shards
    options = {"mode": "streaming", "mix_window": 46, "mix": None, "augment": None, **PIXELS}
    epochs = []
    for num_threads, prefetch in ((1, 0), (4, 3), (2, 1)):
        loader = FDTLoader(folder, 23, on_bad="substitute", num_threads=num_threads, prefetch=prefetch, **options)
        with pytest.warns(UserWarning, match="another sample takes the place of a bad one") as caught:
            epochs.append(list(loader))
        assert len(caught) == loader.stats.bad_samples == 4
        assert (loader.stats.batches, loader.stats.windows) == (10, 5)
        loader.set_epoch(0)
        epochs.append(list(loader))  # now that they are known, nothing fails
        assert loader.stats.bad_samples == 8
        assert len(loader.stats.bad) == 4
    assert set(numbers_of(epochs[0])) == set(range(230)) - bad
    for epoch in epochs[1:]:
        assert_same(epoch, epochs[0])
