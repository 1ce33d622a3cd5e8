"""The data sets made of others: real images enlarged, or drawn by a seed; the same for the same input."""

import io

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import iterate_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from tests.conftest import SUBSET
from tools.data_sets import PER_CLASS, draw_balanced, main, write_jpeg_set, write_photo_set

CLASSES = ("apple", "bear", "chair")


@pytest.fixture
def shards(tmp_path):
    """Ten images of each class, whose level is 20 times the class's number; a little brighter to the right."""
    labels = np.arange(30) % 3
    ramp = np.arange(32, dtype=np.uint8)[None, None, :, None]
    images = (60 * labels.astype(np.uint8) + 20)[:, None, None, None] + np.broadcast_to(ramp, (30, 32, 32, 3))
    write_shards(ArraySource(images.astype(np.uint8), labels, CLASSES), tmp_path / "small", samples_per_shard=10)
    return tmp_path / "small"


def test_as_many_of_each_class_enlarged_as_jpeg_files_the_same_bytes_for_the_same_input(shards, tmp_path):
    manifest = write_jpeg_set(shards, tmp_path / "large", 12)
    assert manifest == read_manifest(tmp_path / "large")
    assert (manifest.classes, manifest.samples_per_class) == (CLASSES, (4, 4, 4))
    assert (manifest.shape, manifest.encoding) == ((224, 224, 3), "keep")
    tar = (tmp_path / "large" / manifest.shards[0].name).read_bytes()
    with Image.open(io.BytesIO(tar[tar.index(b"\xff\xd8\xff") :])) as image:
        assert image.format == "JPEG"
        columns = np.asarray(image)[:, :, 0].mean(0)
    assert write_jpeg_set(shards, tmp_path / "new" / "again", 12).sha256 == manifest.sha256
    levels = columns[0] // 60 * 60 + 20
    np.testing.assert_allclose(columns, levels + np.linspace(-0.5, 31.5, 224).clip(0, 31), atol=3)


def test_a_balanced_subset_in_the_official_format_is_drawn_by_its_seed(tmp_path, monkeypatch):
    """Drawn from the committed subset, of which it takes what the seed says."""
    monkeypatch.setattr("tools.data_sets.PER_CLASS", {split: (name, 7) for split, (name, _) in PER_CLASS.items()})
    main(["fashion", str(SUBSET), str(tmp_path)])
    for split in PER_CLASS:
        whole, drawn = (open_source(folder, "fashion-mnist", split) for folder in (SUBSET, tmp_path))
        chosen = draw_balanced(whole.labels, 7)
        assert np.bincount(drawn.labels).tolist() == [7] * 10
        np.testing.assert_array_equal(drawn.images, whole.images[chosen])
        np.testing.assert_array_equal(drawn.labels, whole.labels[chosen])


def test_photos_are_of_several_sizes_and_fill_as_many_bits_as_photographs(shards, tmp_path, monkeypatch):
    """Here the set's images are ramps, so that all detail is the texture's. Labels are numbers modulo the classes'."""
    monkeypatch.setattr("tools.data_sets.PHOTO_CLASSES", 20)
    manifest = write_photo_set(shards, tmp_path / "photos", 30)
    assert (manifest.shape, manifest.encoding, manifest.samples_per_class) == (None, "keep", (2,) * 10 + (1,) * 10)
    images = [image for shard in iterate_shards(tmp_path / "photos", manifest) for image in shard.images]
    assert len({image.shape for image in images}) > 4
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    assert 3 < 8 * num_bytes / sum(h * w for h, w, _ in (image.shape for image in images)) < 5
    spectrum = abs(np.fft.fft2(images[0][:200, :200].mean(2)))
    assert spectrum[4:6, 4:6].mean() / spectrum[40:60, 40:60].mean() == pytest.approx(10, rel=0.5)
    assert write_photo_set(shards, tmp_path / "again", 30).sha256 == manifest.sha256
    with pytest.raises(ValueError, match="1 to 30 images"):
        write_photo_set(shards, tmp_path / "more", 31)


@pytest.mark.parametrize("num_images", [0, 10, 33])
def test_classes_without_as_many_images_are_an_error(shards, tmp_path, num_images):
    with pytest.raises(ValueError, match="at most 10 of each"):
        write_jpeg_set(shards, tmp_path / "large", num_images)
