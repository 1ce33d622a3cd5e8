"""The reader of streaming: every sample once, near its place, in an order that is known beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.loader import reading as windows
from fdt_pipeline.loader.order import epoch_order
from fdt_pipeline.loader.reading import Window, read_windows
from fdt_pipeline.shards import Manifest, ShardError, read_manifest, write_shards
from fdt_pipeline.shards.files import LocalShardFiles
from fdt_pipeline.shards.index import Member, index_columns, index_text, parse_index
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.storage import open_folder

IMAGES = np.random.default_rng(0).integers(0, 256, (230, 6, 5, 3), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(230)
SOURCE = ArraySource(IMAGES, np.arange(230) % 12)


@pytest.fixture(scope="module", params=["raw", "png"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_shards(SOURCE, folder, request.param, samples_per_shard=60)
    return folder


def read(folder: Path, epoch: int, size: int, shuffle: int, first: int = 0) -> list[Window]:
    manifest = read_manifest(folder)
    order = epoch_order(manifest, 7, epoch, shuffle)
    return list(read_windows(LocalShardFiles(open_folder(folder), manifest), manifest, order, size, first))


def keys(found: list[Window]) -> list[str]:
    return [window.name(number).split()[-1] for window in found for number in range(len(window.labels))]


@pytest.mark.soak
@pytest.mark.parametrize("chunk", [1, 3000, 4 << 20])
@pytest.mark.parametrize("size", [1, 46, 60, 230, 500])
@pytest.mark.parametrize("shuffle", [0, 46, 1000])
def test_an_epoch_has_every_sample_once_with_its_own_label(
    shards: Path, size: int, shuffle: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "CHUNK_BYTES", chunk)
    found = read(shards, 3, size, shuffle)
    assert [len(window.labels) for window in found] == [size] * (230 // size) + ([230 % size] if 230 % size else [])
    assert sorted(map(int, keys(found))) == list(range(230))
    for window in found:
        for number in range(len(window.labels)):
            key = int(window.name(number).split()[-1])
            assert window.labels[number, 0] == key % 12
            if not isinstance(window.images, list):
                np.testing.assert_array_equal(window.images[number], IMAGES[key])


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(0, 10**6))
def test_samples_move_less_than_the_shuffle_within_shards_of_a_new_order(epoch: int, shuffle: int, seed: int) -> None:
    order = epoch_order(FAKE, seed, epoch, shuffle)
    assert sorted(order.samples.tolist()) == list(range(230))
    assert np.abs(order.samples - np.arange(230)).max() < shuffle
    assert {shard.name for shard in order.shards} == {shard.name for shard in FAKE.shards}


class FakeManifest:
    """As much of one as an order needs."""

    num_samples = 230
    shards = tuple(type("S", (), {"name": f"s{i}", "num_samples": n})() for i, n in enumerate((60, 60, 60, 50)))


FAKE: Manifest = FakeManifest()  # type: ignore[assignment]


def test_epochs_and_seeds_differ_and_repeat(shards: Path) -> None:
    first, again, second = (keys(read(shards, epoch, 50, 50)) for epoch in (0, 0, 1))
    assert first == again != second


@pytest.mark.parametrize("first", range(5))
def test_any_window_can_be_the_first_one_read(shards: Path, first: int) -> None:
    """What an exact resume needs; shards before it are not opened."""
    assert keys(read(shards, 2, 50, 40, first)) == keys(read(shards, 2, 50, 40))[50 * first :]


def test_no_more_than_the_shuffle_waits(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_BYTES", 1)
    assert max(len(window.chunks) for window in read(shards, 0, 20, 30)) <= 20 + 2 * 30


def test_a_label_that_is_no_class_is_named(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    index = index_columns((folder / "shard-000002.idx").read_text(), ("npy", "png"), 1 << 20)
    with (folder / "shard-000002.tar").open("r+b") as file:
        file.seek(int(index.label_offsets[5]))
        file.write(b"x")
    key = index.names[5].partition(".")[0]
    with pytest.raises(ShardError, match=rf"shard-000002.tar: sample {key}: the .cls member holds b'x1?', expected"):
        read(folder, 0, 50, 50)


def test_a_tar_that_is_cut_while_it_is_read_is_named(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ShardError, match=r"shard-000001.tar: cut or changed since it was checked, in or before \d+"):
        read(folder, 0, 50, 0)


Samples = list[list[Member]]


def moved(number: int, member: int, **fields: int) -> Callable[[Samples], Samples]:
    """A change of an index: one member of sample `number` lies elsewhere."""

    def change(samples: Samples) -> Samples:
        samples[number][member] = samples[number][member]._replace(**fields)
        return samples

    return change


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (moved(0, 0, offset=-512), r"expected \S+ within the tar's \d+ bytes, got offset -512, size \d+"),
        (moved(30, 1, size=-1), r"expected \S+\.cls within the tar's \d+ bytes, got offset \d+, size -1"),
        (moved(59, 0, offset=10**9), r"expected \S+ within the tar's \d+ bytes, got offset 1000000000, size \d+"),
        (moved(59, 1, size=10**18), r"expected \S+\.cls within the tar's .*, size 1000000000000000000"),
        (moved(7, 1, offset=10**20), r"expected \S+\.cls within the tar's .*, got offset 100000000000000000000"),
        (moved(59, 1, offset=1536), r"expected each member behind the one before, got others at \d+"),
        (lambda samples: samples[::-1], r"expected each member behind the one before, got others at \d+"),
    ],
    ids=["negative", "negative size", "beyond the end", "too long", "beyond 64 bits", "last label first", "backwards"],
)
def test_an_index_that_points_elsewhere_is_an_error_and_nothing_else_is_read(
    shards: Path, tmp_path: Path, damage: Callable[[Samples], Samples], found: str
) -> None:
    """Without a look at its sha256, as with verify=False."""
    folder = shutil.copytree(shards, tmp_path / "copy")
    index = folder / "shard-000001.idx"
    index.write_text(index_text(damage(parse_index(index.read_text()))))
    with pytest.raises(ShardError, match=rf"shard-000001\.tar: {found}"):
        read(folder, 0, 50, 50)
