"""Shards written again in another encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import ShardError, convert_shards, load_shards, read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.conversion import read_index
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.storage import open_folder
from tests.folders import content

LABELS = np.arange(30) % 3


def source(channels: int = 3) -> ArraySource:
    return ArraySource(np.random.default_rng(0).integers(0, 256, (30, 9, 7, channels), dtype=np.uint8), LABELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "webp", "keep"])
def test_there_and_back_gives_the_first_bytes(tmp_path: Path, encoding: str, channels: int) -> None:
    write_shards(source(channels), tmp_path / "raw", samples_per_shard=12, seed=4)
    convert_shards(tmp_path / "raw", tmp_path / "there", encoding)
    assert verify_shards(tmp_path / "there", decode=True) == []
    convert_shards(tmp_path / "there", tmp_path / "back", "raw")
    assert content(tmp_path / "back") == content(tmp_path / "raw")


@pytest.mark.parametrize("encoding", ["png", "webp", "jpg"])
def test_it_is_what_sharding_the_source_would_have_given(tmp_path: Path, encoding: str) -> None:
    write_shards(source(), tmp_path / "raw", samples_per_shard=12)
    convert_shards(tmp_path / "raw", tmp_path / "converted", encoding, workers=2)
    write_shards(source(), tmp_path / "fresh", encoding, samples_per_shard=12)
    assert content(tmp_path / "converted") == content(tmp_path / "fresh")


def test_keep_keeps_the_files_of_encoded_shards(tmp_path: Path) -> None:
    write_shards(source(), tmp_path / "jpg", "jpg")
    convert_shards(tmp_path / "jpg", tmp_path / "keep", "keep")
    assert (tmp_path / "keep" / "shard-000000.tar").read_bytes() == (tmp_path / "jpg" / "shard-000000.tar").read_bytes()


def test_images_may_get_one_size(tmp_path: Path) -> None:
    write_shards(source(), tmp_path / "raw")
    manifest = convert_shards(tmp_path / "raw", tmp_path / "small", "png", size=4)
    assert (manifest.shape, manifest.size) == ((4, 4, 3), 4)
    assert load_shards(tmp_path / "small")[0].shape == (30, 4, 4, 3)


def test_what_was_renamed_or_left_out_is_still_told(tmp_path: Path) -> None:
    class Odd(ArraySource):
        def __getitem__(self, index: int):
            sample = super().__getitem__(index)
            image = sample.image.astype(float) if sample.key == "7" else sample.image
            return sample._replace(key=f"ö {sample.key}", image=image)

    images = np.zeros((30, 4, 4, 3), np.uint8)
    first = write_shards(Odd(images, LABELS), tmp_path / "raw", on_bad="quarantine")
    second = convert_shards(tmp_path / "raw", tmp_path / "png", "png")
    assert len(first.keys) == 29
    assert (second.keys, second.quarantine, second.num_samples) == (first.keys, first.quarantine, 29)


def test_damaged_shards_are_not_converted(tmp_path: Path) -> None:
    write_shards(source(), tmp_path / "raw")
    path = tmp_path / "raw" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000000.tar: damaged"):
        convert_shards(tmp_path / "raw", tmp_path / "png", "png")
    assert not (tmp_path / "png").exists()


def test_a_set_is_not_converted_onto_itself(tmp_path: Path) -> None:
    write_shards(source(), tmp_path)
    with pytest.raises(ValueError, match="cannot be converted in place: choose another folder"):
        convert_shards(tmp_path, tmp_path, "png", overwrite=True)
    assert read_manifest(tmp_path).encoding == "raw"


def test_a_conversion_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise StopError

    write_shards(source(), tmp_path / "raw", samples_per_shard=10)
    with pytest.raises(StopError):
        convert_shards(tmp_path / "raw", tmp_path / "png", "png", progress=stop)
    convert_shards(tmp_path / "raw", tmp_path / "png", "png", resume=True)
    convert_shards(tmp_path / "raw", tmp_path / "whole", "png")
    assert content(tmp_path / "png") == content(tmp_path / "whole")


def test_an_index_that_points_outside_of_its_tar_is_named(tmp_path: Path) -> None:
    """Before memory is taken for what it promises."""
    manifest = write_shards(source(), tmp_path)
    index = tmp_path / "shard-000000.idx"
    index.write_text(index.read_text().replace("npy 512 ", "npy 512 99999999999", 1))
    with pytest.raises(
        ShardError, match=r"shard-000000.idx: expected \S+ within the tar's \d+ bytes, got offset 512, size"
    ):
        read_index(open_folder(tmp_path), manifest.shards[0])
