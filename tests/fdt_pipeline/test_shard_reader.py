"""Reading shards into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import (
    ShardError,
    check_shards,
    iterate_shards,
    load_shards,
    read_manifest,
    read_shard,
    reader,
    write_shards,
)
from fdt_pipeline.sources import ArraySource, Sample

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(30) % 3)


@pytest.fixture(params=["raw", "png"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_shards(SOURCE, tmp_path, request.param, samples_per_shard=12)
    return tmp_path


@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_the_whole_set_is_loaded_in_the_order_of_the_shards(folder: Path, num_threads: int | None) -> None:
    calls: list[tuple[int, int]] = []
    images, labels, keys = load_shards(folder, lambda done, total: calls.append((done, total)), num_threads)
    positions = [int(key) for key in keys]
    assert sorted(positions) == list(range(30))
    np.testing.assert_array_equal(images, IMAGES[positions])
    np.testing.assert_array_equal(labels, SOURCE.labels[positions])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert calls == [(12, 30), (24, 30), (30, 30)]
    manifest = read_manifest(folder)
    streamed = [key for shard in manifest.shards for key, _, _ in read_shard(folder, manifest, shard)]
    assert streamed == keys


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_gray_images_keep_their_channel_axis(tmp_path: Path, encoding: str) -> None:
    write_shards(ArraySource(IMAGES[..., 0], SOURCE.labels), tmp_path, encoding)
    assert load_shards(tmp_path)[0].shape == (30, 5, 4, 1)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_few_shards_are_in_memory_and_no_thread_outlives_a_reader_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    manifest = write_shards(SOURCE, tmp_path, samples_per_shard=2)
    real, begun = reader._load, []
    monkeypatch.setattr(reader, "_load", lambda *arguments: begun.append(arguments) or real(*arguments))
    before = threading.active_count()
    shards = iterate_shards(tmp_path, manifest, num_threads=num_threads)
    for taken in range(1, 5):
        assert next(shards).first == 2 * (taken - 1)
        assert len(begun) < taken + num_threads
    shards.close()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_shards(tmp_path, interrupt, num_threads)
    assert threading.active_count() == before


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[min(700, len(content) - 5)] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (flip, "shard-000001.tar", "damaged: expected sha256"),
        (flip, "shard-000001.idx", "damaged: expected sha256"),
        (Path.unlink, "shard-000001.tar", "missing"),
        (Path.unlink, "shard-000001.idx", "missing"),
        (cut, "shard-000001.tar", r"expected \d+ bytes, got \d+"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, damage: Callable[[Path], None], name: str, message: str) -> None:
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    damage(folder / name)
    with pytest.raises(ShardError, match=f"{name}: {message}"):
        load_shards(folder)
    with pytest.raises(ShardError, match=f"{name}: ({message}|damaged)"):
        read_shard(folder, manifest, manifest.shards[1])
    if damage != flip:
        with pytest.raises(ShardError, match=f"{name}: {message}"):
            check_shards(folder, manifest)


def test_a_cut_tar_is_seen_before_any_other_is_read(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    cut(folder / "shard-000002.tar")
    with pytest.raises(ShardError, match=r"shard-000002.tar: expected .* bytes"):
        load_shards(folder, lambda done, total: calls.append((done, total)))
    assert calls == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1.2", "v1.1", r"shard-000000.idx: expected 'v1.2'"),
        ("v1.2 30\n", "v1.2 29\n", r"shard-000000.idx: expected 'v1.2' and the number of lines"),
        ("npy 512 ", "npy 513 ", r"shard-000000.tar: sample \d{8}: not an npy file"),
        (
            "npy 512 ",
            "npy 99999999 ",
            r"shard-000000.idx: expected \S+ within the tar's .*, got offset 99999999",
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
    with pytest.raises(ShardError, match=message):
        list(iterate_shards(tmp_path, dataclasses.replace(manifest, shards=(shard,))))
