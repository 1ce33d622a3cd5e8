"""Reading shards into memory."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import ShardError, check_shards, load_shards, read_manifest, read_shard, write_shards
from fdt_pipeline.sources import ArraySource, Sample

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(30) % 3)


@pytest.fixture(params=["raw", "png"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_shards(SOURCE, tmp_path, request.param, samples_per_shard=12)
    return tmp_path


def test_the_whole_set_is_loaded_in_the_order_of_the_shards(folder: Path) -> None:
    images, labels, keys = load_shards(folder)
    positions = [int(key) for key in keys]
    assert sorted(positions) == list(range(30))
    np.testing.assert_array_equal(images, IMAGES[positions])
    np.testing.assert_array_equal(labels, SOURCE.labels[positions])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    manifest = read_manifest(folder)
    streamed = [key for shard in manifest.shards for key, _, _ in read_shard(folder, manifest, shard)]
    assert streamed == keys


def test_gray_images_keep_their_channel_axis(tmp_path: Path) -> None:
    for encoding in ("raw", "png"):
        write_shards(ArraySource(IMAGES[..., 0], SOURCE.labels), tmp_path, encoding, overwrite=True)
        assert load_shards(tmp_path)[0].shape == (30, 5, 4, 1)


def test_progress_counts_samples(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_shards(folder, lambda done, total: calls.append((done, total)))
    assert calls == [(12, 30), (24, 30), (30, 30)]


class Cut:
    """Image i has i % 5 + 1 rows."""

    kind, split, classes, labels, shape = "cut", None, SOURCE.classes, SOURCE.labels, None

    def __len__(self) -> int:
        return len(SOURCE)

    def __getitem__(self, index: int) -> Sample:
        return Sample(IMAGES[index, : index % 5 + 1].copy(), int(self.labels[index]), str(index))


def test_mixed_sizes_cannot_be_resident_but_can_be_read(tmp_path: Path) -> None:
    manifest = write_shards(Cut(), tmp_path)
    with pytest.raises(ValueError, match="mixed-size shards cannot be resident: stream them with a size, or shard"):
        load_shards(tmp_path)
    for key, image, label in read_shard(tmp_path, manifest, manifest.shards[0]):
        np.testing.assert_array_equal(image, Cut()[int(key)].image)
        assert label == int(key) % 3


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_while_reading(folder: Path) -> None:
    manifest = read_manifest(folder)
    flip(folder / "shard-000001.tar", 700)
    with pytest.raises(ShardError, match=r"shard-000001.tar: damaged: expected sha256"):
        load_shards(folder)
    with pytest.raises(ShardError, match=r"shard-000001.tar: damaged"):
        read_shard(folder, manifest, manifest.shards[1])


def test_a_flipped_byte_of_an_index_is_found_while_reading(folder: Path) -> None:
    flip(folder / "shard-000002.idx", 20)
    with pytest.raises(ShardError, match=r"shard-000002.idx: damaged"):
        load_shards(folder)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    (folder / name).unlink()
    with pytest.raises(ShardError, match=f"{name}: missing"):
        check_shards(folder, manifest)
    with pytest.raises(ShardError, match=f"{name}: missing"):
        load_shards(folder)
    with pytest.raises(ShardError, match=f"{name}: missing"):
        read_shard(folder, manifest, manifest.shards[1])


def test_a_cut_tar_is_named_with_its_size(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match=f"shard-000000.tar: expected {size} bytes, got {size - 512}"):
        check_shards(folder, read_manifest(folder))


def test_a_cut_tar_is_seen_before_any_other_is_read(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = folder / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"shard-000002.tar: expected .* bytes"):
        load_shards(folder, lambda done, total: calls.append((done, total)))
    assert calls == []


def test_whole_shards_pass_the_check(folder: Path) -> None:
    check_shards(folder, read_manifest(folder))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1.2", "v1.1", r"shard-000000.idx: expected 'v1.2'"),
        ("npy 512 ", "npy 513 ", r"shard-000000.tar: sample \d{8}: not an npy file"),
        (
            "npy 512 ",
            "npy 99999999 ",
            r"shard-000000.idx: expected \S+ within the tar's \d+ bytes, got offset 99999999",
        ),
        (" cls 1536 1 ", " cls -20 1 ", r"shard-000000.idx: expected \S+ within the tar's \d+ bytes, got offset -20,"),
        ("npy 512 ", "jpg 512 ", r"shard-000000.idx: expected the members .npy and .cls, got cls, jpg, npy"),
        (" cls 1536 1 ", " cls 1536 0 ", r"shard-000000.tar: sample \d{8}: the .cls member holds b''"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Even where the manifest has its hash."""
    manifest = write_shards(SOURCE, tmp_path)
    path = tmp_path / "shard-000000.idx"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    shard = dataclasses.replace(manifest.shards[0], index_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ShardError, match=message):
        list(read_shard(tmp_path, manifest, shard))
