"""Reading shards into memory."""

import dataclasses
import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import (
    ShardError,
    iterate_shards,
    load_shards,
    reader,
    write_shards,
)
from fdt_pipeline.sources import ArraySource
from tests.numbered import PlainSource

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(30) % 3)


@pytest.fixture(params=["raw", "png"])
def folder(request, tmp_path):
    write_shards(SOURCE, tmp_path, request.param, samples_per_shard=12)
    return tmp_path


@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_the_whole_set_is_loaded_in_the_order_of_the_shards(folder, num_threads):
    calls = []
    images, labels, keys = load_shards(folder, lambda done, total: calls.append((done, total)), num_threads)
    positions = [int(key) for key in keys]
    assert sorted(positions) == list(range(30))
    np.testing.assert_array_equal(images, IMAGES[positions])
    np.testing.assert_array_equal(labels, SOURCE.labels[positions])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert calls == [(12, 30), (24, 30), (30, 30)]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_few_shards_are_in_memory_and_no_thread_outlives_a_reader_that_stops(tmp_path, monkeypatch, num_threads):
    manifest = write_shards(SOURCE, tmp_path, samples_per_shard=2)
    real, begun = reader._load, []
    monkeypatch.setattr(reader, "_load", lambda *arguments: begun.append(arguments) or real(*arguments))
    before = threading.active_count()
    shards = iterate_shards(tmp_path, manifest, num_threads=num_threads)
    for taken in range(1, 5):
        assert next(shards).first == 2 * (taken - 1)
        assert len(begun) < taken + num_threads
    shards.close()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_shards(tmp_path, interrupt, num_threads)
    assert threading.active_count() == before


def test_mixed_sizes_cannot_be_resident_but_can_be_read(tmp_path):
    source = PlainSource([image[: index % 5 + 1] for index, image in enumerate(IMAGES)], num_classes=3)
    manifest = write_shards(source, tmp_path)
    with pytest.raises(ValueError, match="mixed-size shards cannot be resident: stream them with a size, or shard"):
        load_shards(tmp_path)
    [shard] = iterate_shards(tmp_path, manifest)
    for key, image, label in zip(shard.keys, shard.images, shard.labels, strict=True):
        np.testing.assert_array_equal(image, source.images[int(key)])
        assert label == int(key) % 3


def flip(path):
    content = bytearray(path.read_bytes())
    content[min(700, len(content) - 5)] ^= 1
    path.write_bytes(content)


def cut(path):
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
def test_a_damaged_file_is_named(folder, damage, name, message):
    damage(folder / name)
    calls = []
    with pytest.raises(ShardError, match=f"{name}: {message}"):
        load_shards(folder, lambda done, total: calls.append((done, total)))
    if damage != flip:
        assert calls == [], "it is seen before a shard is read"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1.2 30\n", "v1.2 29\n", r"shard-000000.idx: expected 'v1.2' and the number of lines"),
        ("npy 512 ", "npy 513 ", r"shard-000000.tar: sample \d{8}: not an npy file"),
        ("npy 512 ", "npy 99999999 ", r"shard-000000.idx: expected .* within the tar's \d+ bytes, got npy 99999999"),
        (" cls 1536 1 ", " cls -20 1 ", r"shard-000000.idx: expected .* within the tar's \d+ bytes, got .* cls -20 1"),
        ("npy 512 ", "jpg 512 ", r"shard-000000.idx: expected the members .npy and .cls, got cls, jpg, npy"),
        (" cls 1536 1 ", " cls 1536 0 ", r"shard-000000.tar: sample \d{8}: the .cls member holds b''"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path, old, new, message):
    """The manifest has its hash, so the hash alone shows nothing."""
    manifest = write_shards(SOURCE, tmp_path)
    path = tmp_path / "shard-000000.idx"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    shard = dataclasses.replace(manifest.shards[0], index_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ShardError, match=message):
        list(iterate_shards(tmp_path, dataclasses.replace(manifest, shards=(shard,))))
