"""Shards written again in another encoding."""

import numpy as np
import pytest

from fdt_pipeline.shards import ShardError, convert_shards, load_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests.folders import content, stop_after

LABELS = np.arange(30) % 3


def source(channels=3):
    return ArraySource(np.random.default_rng(0).integers(0, 256, (30, 9, 7, channels), dtype=np.uint8), LABELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("first", "second"),
    [*(("raw", encoding) for encoding in ("png", "webp", "jpg", "keep")), ("png", "raw"), ("webp", "raw")],
)
def test_it_is_what_sharding_the_source_would_have_given(tmp_path, first, second, channels):
    write_shards(source(channels), tmp_path / "first", first, samples_per_shard=12, seed=4)
    convert_shards(tmp_path / "first", tmp_path / "converted", second, workers=2)
    write_shards(source(channels), tmp_path / "fresh", second, samples_per_shard=12, seed=4)
    assert content(tmp_path / "converted") == content(tmp_path / "fresh")


def test_keep_keeps_the_files_of_encoded_shards(tmp_path):
    write_shards(source(), tmp_path / "jpg", "jpg")
    convert_shards(tmp_path / "jpg", tmp_path / "keep", "keep")
    assert (tmp_path / "keep" / "shard-000000.tar").read_bytes() == (tmp_path / "jpg" / "shard-000000.tar").read_bytes()


def test_images_may_get_one_size(tmp_path):
    write_shards(source(), tmp_path / "raw")
    manifest = convert_shards(tmp_path / "raw", tmp_path / "small", "png", size=4)
    assert (manifest.shape, manifest.size) == ((4, 4, 3), 4)
    assert load_shards(tmp_path / "small")[0].shape == (30, 4, 4, 3)


def test_what_was_renamed_or_left_out_is_still_told(tmp_path):
    class Odd(ArraySource):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            image = sample.image.astype(float) if sample.key == "7" else sample.image
            return sample._replace(key=f"ö {sample.key}", image=image)

    images = np.zeros((30, 4, 4, 3), np.uint8)
    first = write_shards(Odd(images, LABELS), tmp_path / "raw", on_bad="quarantine")
    second = convert_shards(tmp_path / "raw", tmp_path / "png", "png")
    assert len(first.keys) == 29
    assert (second.keys, second.quarantine, second.num_samples) == (first.keys, first.quarantine, 29)
    assert convert_shards(tmp_path / "raw", tmp_path / "png", "png", resume=True) == second


def test_damaged_shards_are_not_converted(tmp_path):
    write_shards(source(), tmp_path / "raw")
    path = tmp_path / "raw" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000000.tar: damaged"):
        convert_shards(tmp_path / "raw", tmp_path / "png", "png")
    assert not (tmp_path / "png").exists()


def test_a_set_is_not_converted_onto_itself(tmp_path):
    write_shards(source(), tmp_path)
    with pytest.raises(ValueError, match="cannot be converted in place: choose another folder"):
        convert_shards(tmp_path, tmp_path, "png", overwrite=True)
    assert read_manifest(tmp_path).encoding == "raw"


def test_a_conversion_that_was_broken_off_goes_on(tmp_path):
    write_shards(source(), tmp_path / "raw", samples_per_shard=10)
    with pytest.raises(KeyboardInterrupt):
        convert_shards(tmp_path / "raw", tmp_path / "png", "png", progress=stop_after(20))
    convert_shards(tmp_path / "raw", tmp_path / "png", "png", resume=True)
    convert_shards(tmp_path / "raw", tmp_path / "whole", "png")
    assert content(tmp_path / "png") == content(tmp_path / "whole")
