"""The reader of streaming: every sample once, near its place, in an order that is known beforehand."""

import shutil

import numpy as np
import pytest

from fdt_pipeline.loader import reading
from fdt_pipeline.loader.order import epoch_order
from fdt_pipeline.shards import ShardError, read_manifest, write_shards
from fdt_pipeline.shards.files import LocalShardFiles
from fdt_pipeline.shards.index import index_text
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.storage import open_folder
from tests.folders import parse_index
from tests.numbered import numbered_images

IMAGES = numbered_images(230)


@pytest.fixture(scope="module", params=["raw", "png"])
def shards(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_shards(ArraySource(IMAGES, np.arange(230) % 12), folder, request.param, samples_per_shard=60)
    return folder


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def read(folder, epoch, size, shuffle, first=0):
    manifest = read_manifest(folder)
    order = epoch_order(manifest, 7, epoch, shuffle)
    bounds = [(begin, min(begin + size, 230)) for begin in range(first * size, 230, size)]
    return list(reading.read_samples(LocalShardFiles(open_folder(folder), manifest), manifest, order, bounds))


def keys(found):
    return [int(batch.name(number).split()[-1]) for batch in found for number in range(len(batch.labels))]


@pytest.mark.soak
@pytest.mark.parametrize("chunk", [1, 3000, 4 << 20])
@pytest.mark.parametrize("size", [1, 46, 60, 230, 500])
@pytest.mark.parametrize("shuffle", [0, 46, 1000])
def test_an_epoch_has_every_sample_once_with_its_own_label(shards, size, shuffle, chunk, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_BYTES", chunk)
    found = read(shards, 3, size, shuffle)
    assert [len(batch.labels) for batch in found] == [size] * (230 // size) + ([230 % size] if 230 % size else [])
    assert sorted(keys(found)) == list(range(230))
    for batch in found:
        numbers = keys([batch])
        assert batch.labels[:, 0].tolist() == [number % 12 for number in numbers]
        if not isinstance(batch.images, list):
            np.testing.assert_array_equal(batch.images, IMAGES[numbers])


@pytest.mark.parametrize("first", range(5))
def test_any_batch_can_be_the_first_one_read(shards, first):
    """What an exact resume needs; shards before it are not opened."""
    assert keys(read(shards, 2, 50, 40, first)) == keys(read(shards, 2, 50, 40))[50 * first :]


def test_a_tar_that_is_cut_while_it_is_read_is_named(copy):
    path = copy / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ShardError, match=r"shard-000001.tar: cut or changed since it was checked, in or before \d+"):
        read(copy, 0, 50, 0)


@pytest.mark.parametrize(
    ("number", "member", "fields", "found"),
    [
        (0, 0, {"offset": -512}, r"expected .* within the tar's \d+ bytes, got \w+ -512 \d+ "),
        (30, 1, {"size": -1}, r"expected .* within the tar's \d+ bytes, got .* cls \d+ -1 "),
        (59, 1, {"size": 10**18}, r"expected .* within the tar's .* cls \d+ 1000000000000000000 "),
        (59, 1, {"offset": 1536}, r"expected each member behind the one before, .* cls 1536 "),
    ],
)
def test_an_index_that_points_elsewhere_is_an_error_and_nothing_else_is_read(copy, number, member, fields, found):
    """Without a look at its sha256, as with verify=False."""
    index = copy / "shard-000001.idx"
    samples = parse_index(index.read_text())
    samples[number][member] = samples[number][member]._replace(**fields)
    index.write_text(index_text(samples))
    with pytest.raises(ShardError, match=rf"shard-000001\.tar: {found}"):
        read(copy, 0, 50, 50)
