"""Sharding to, reading from and verifying an object store: a real S3 API, also while it fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fdt_pipeline.storage.cache
from fdt_pipeline.cli import main
from fdt_pipeline.shards import (
    Manifest,
    ShardError,
    SourceError,
    convert_shards,
    load_shards,
    read_manifest,
    verify_shards,
    write_shards,
)
from fdt_pipeline.shards.files import CachedShardFiles
from fdt_pipeline.sources import ArraySource, open_source, source_splits
from fdt_pipeline.storage import open_folder
from fdt_pipeline.storage.cache import Cache, ChangedError, Entry
from fdt_pipeline.storage.remote import RemoteFolder
from fdt_pipeline.storage.retrying import Retry
from tests.folders import content
from tests.object_store import Answer, Proxy, answers, cuts, flips, hangs, object_store
from tests.peers import needs
from tests.web import web_server

pytestmark = pytest.mark.peer

needs("moto")
needs("s3fs")

SOURCE = ArraySource(
    np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8), np.arange(120) % 4, list("abcd")
)
IMPATIENT = {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}
QUICK = Retry(tries=4, first_wait=0.01, longest_wait=0.05)


@pytest.fixture(scope="module")
def store() -> Iterator[Proxy]:
    with object_store() as proxy:
        RemoteFolder("s3://bucket").fs.mkdir("s3://bucket")
        write_shards(SOURCE, "s3://bucket/set", samples_per_shard=20, seed=3)
        yield proxy


@pytest.fixture(autouse=True)
def without_faults(store: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path / "cache"))
    store.reset()
    yield
    store.reset()


def remote() -> RemoteFolder:
    return RemoteFolder("s3://bucket/set", QUICK, IMPATIENT)


def entry(number: int = 0, manifest: Manifest | None = None) -> Entry:
    shard = (manifest or read_manifest("s3://bucket/set")).shards[number]
    return Entry(remote(), shard.name, shard.num_bytes, shard.sha256)


def downloaded(folder: str, to: Path) -> Path:
    to.mkdir()
    for name in open_folder(folder).names():
        (to / name).write_bytes(open_folder(folder).read(name))
    return to


def test_what_is_sharded_to_a_store_is_what_is_sharded_to_a_folder(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path / "local", samples_per_shard=20, seed=3)
    assert content(downloaded("s3://bucket/set", tmp_path / "copy")) == content(tmp_path / "local")
    assert open_folder("s3://bucket/set").subfolders() == [], "nothing of the staging folder is left"
    assert verify_shards("s3://bucket/set", decode=True) == []


def test_an_interrupted_run_goes_on_in_a_store(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 60:
            raise StopError

    with pytest.raises(StopError):
        write_shards(SOURCE, "s3://bucket/resumed", samples_per_shard=20, seed=3, progress=stop)
    calls: list[int] = []
    write_shards(
        SOURCE,
        "s3://bucket/resumed",
        samples_per_shard=20,
        seed=3,
        resume=True,
        workers=2,
        progress=lambda done, total: calls.append(done),
    )
    assert calls == [80, 100, 120]
    local = downloaded("s3://bucket/resumed", tmp_path / "resumed")
    assert content(local) == content(downloaded("s3://bucket/set", tmp_path / "set"))


def test_a_store_is_read_converted_and_verified_like_a_folder(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path / "local", samples_per_shard=20, seed=3)
    for mine, theirs in zip(load_shards("s3://bucket/set"), load_shards(tmp_path / "local"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    convert_shards("s3://bucket/set", "s3://bucket/webp", "webp", workers=2)
    convert_shards(tmp_path / "local", tmp_path / "webp", "webp")
    assert content(downloaded("s3://bucket/webp", tmp_path / "copy")) == content(tmp_path / "webp")


def test_damage_in_a_store_is_found_by_verify() -> None:
    write_shards(SOURCE, "s3://bucket/damaged", samples_per_shard=60)
    folder = open_folder("s3://bucket/damaged")
    data = bytearray(folder.read("shard-000001.tar"))
    data[3500] ^= 1
    with folder.writing("shard-000001.tar") as file:
        file.write(data)
    problems = verify_shards(folder)
    assert any("s3://bucket/damaged/shard-000001.tar: sample" in problem for problem in problems)
    folder.remove("shard-000000.tar")
    assert "s3://bucket/damaged/shard-000000.tar: missing" in verify_shards(folder)


FAULTS = {
    "503": lambda: answers(503, ".tar"),
    "500": lambda: answers(500, ".tar"),
    "cut": lambda: cuts(1000, ".tar"),
    "hang": lambda: hangs(1.5, ".tar"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_arrives_whole_in_spite_of_faults(store: Proxy, tmp_path: Path, fault: str) -> None:
    wanted = entry()
    store.put_in(FAULTS[fault](), times=2)
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    assert len(store.gets(".tar")) >= 3


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_without_end_are_an_error_that_names_the_file(store: Proxy, tmp_path: Path, fault: str) -> None:
    wanted = entry()
    store.put_in(FAULTS[fault]())
    with (
        pytest.raises(OSError, match=r"s3://bucket/set/shard-000000.tar: broke off at byte \d+ of \d+ .*in 4 tries"),
        Cache(tmp_path / "c").leased(wanted),
    ):
        pass
    store.reset()
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert path.stat().st_size == wanted.num_bytes


def test_a_broken_transfer_is_taken_up_where_it_broke(store: Proxy, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fdt_pipeline.storage.cache.BLOCK_BYTES", 5000)
    wanted = entry()
    store.reset()
    store.put_in(answers(503, ".tar"), times=3)
    broken = Cache(tmp_path / "c")
    part = tmp_path / "c" / f"{wanted.sha256}.{wanted.num_bytes}.part"
    part.write_bytes(wanted.folder.read(wanted.name)[:12_345])
    store.requests.clear()
    with broken.leased(wanted) as path:
        assert path.stat().st_size == wanted.num_bytes
    begins = [int(str(span).removeprefix("bytes=").split("-")[0]) for span in store.gets(".tar")]
    assert min(begins) == 12_345
    assert begins == sorted(begins)


def test_a_flipped_bit_is_fetched_again_and_a_changed_file_is_an_error(store: Proxy, tmp_path: Path) -> None:
    wanted = entry()
    store.put_in(flips(".tar"), times=1)
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    changed = Entry(wanted.folder, "shard-000001.tar", wanted.num_bytes, wanted.sha256[::-1])
    with (
        pytest.raises(ChangedError, match=r"shard-000001.tar: expected sha256 .*, got .*: changed since its manifest"),
        Cache(tmp_path / "c").leased(changed),
    ):
        pass
    assert [path.name for path in (tmp_path / "c").iterdir() if path.suffix == ".part"] == []


def test_a_second_reader_fetches_nothing(store: Proxy, tmp_path: Path) -> None:
    load_shards("s3://bucket/set")
    store.requests.clear()
    load_shards("s3://bucket/set")
    assert store.gets(".tar") == store.gets(".idx") == []


def test_the_cache_keeps_to_its_size_and_forgets_what_was_not_used_for_longest(store: Proxy, tmp_path: Path) -> None:
    manifest = read_manifest("s3://bucket/set")
    size = manifest.shards[0].num_bytes
    cache = Cache(tmp_path / "c", max_bytes=3 * size)
    for number in (0, 1, 2, 0, 3, 4):
        with cache.leased(entry(number, manifest)):
            assert cache.num_bytes() <= 3 * size
    held = {path.name for path in (tmp_path / "c").iterdir()}
    assert {manifest.shards[number].sha256 for number in (0, 3, 4)} <= held
    assert not {manifest.shards[number].sha256 for number in (1, 2)} & held


def test_shards_are_fetched_ahead_in_order_and_let_go(store: Proxy, tmp_path: Path) -> None:
    manifest = read_manifest("s3://bucket/set")
    size = manifest.shards[0].num_bytes
    files = CachedShardFiles(remote(), Cache(tmp_path / "c", 4 * size))
    store.requests.clear()
    reader = files.in_order(manifest.shards)
    first = next(reader)
    assert first.tar.read_bytes()
    deadline = time.monotonic() + 60
    while len(store.gets(".tar")) < 3:
        assert time.monotonic() < deadline, "two more shards fit into half of the cache"
        time.sleep(0.01)
    names = [first.url, *(file.url for file in reader)]
    assert names == [f"s3://bucket/set/{shard.name}" for shard in manifest.shards]
    assert files.cache.num_bytes() <= 4 * size
    assert len(store.gets(".tar")) == len(manifest.shards), "each is fetched once"


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_loader_of_a_store_gives_what_one_of_a_folder_does(tmp_path: Path, mode: Any, monkeypatch: Any) -> None:
    pytest.importorskip("nvidia.dali")
    from fdt_pipeline import FDTLoader

    write_shards(SOURCE, tmp_path / "local", samples_per_shard=20, seed=3)
    size = read_manifest(tmp_path / "local").shards[0].num_bytes
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE_BYTES", str(3 * size))
    loaders = [
        FDTLoader(place, 32, mode=mode, seed=5, mix_window=None if mode == "resident" else 40)
        for place in ("s3://bucket/set", tmp_path / "local")
    ]
    for _ in range(2):
        for (images, targets), (images_here, targets_here) in zip(*loaders, strict=True):
            np.testing.assert_array_equal(images.numpy(), images_here.numpy())
            np.testing.assert_array_equal(targets.numpy(), targets_here.numpy())


def test_a_failing_store_is_an_error_of_the_loader_that_names_the_shard(store: Proxy, monkeypatch: Any) -> None:
    pytest.importorskip("nvidia.dali")
    from fdt_pipeline import FDTLoader

    loader = FDTLoader("s3://bucket/set", 32, mode="streaming", mix_window=40)
    loader.shards.retry = QUICK  # type: ignore[union-attr]
    store.put_in(answers(500, ".tar"))
    with pytest.raises(OSError, match=r"s3://bucket/set/shard-00000\d.tar: broke off at byte 0"):
        list(loader)


def _use(directory: str, requests: Any) -> None:
    cache = Cache(Path(directory))
    for number in range(6):
        with cache.leased(entry(number)) as path:
            assert path.stat().st_size


def test_processes_that_want_the_same_file_fetch_it_once(store: Proxy, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_use, args=(str(tmp_path / "c"), None)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(store.gets(".tar")) == 6


def _fetch_in_small_blocks(directory: str) -> None:
    fdt_pipeline.storage.cache.BLOCK_BYTES = 5000
    with Cache(Path(directory)).leased(entry()):
        pass


def test_what_a_killed_process_had_fetched_is_gone_on_with(store: Proxy, tmp_path: Path, monkeypatch: Any) -> None:
    wanted = entry()

    def hangs_after_four_blocks(method: str, path: str, span: str | None, answer: Answer) -> bool:
        if path.endswith(".tar") and str(span).startswith("bytes=20000"):
            answer.delay = 60
        return True

    store.put_in(hangs_after_four_blocks)
    process = multiprocessing.get_context("spawn").Process(target=_fetch_in_small_blocks, args=(str(tmp_path / "c"),))
    process.start()
    deadline = time.monotonic() + 300
    while not any(part.stat().st_size >= 20_000 for part in (tmp_path / "c").glob("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.reset()
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    assert store.gets(".tar")[0] == f"bytes=20000-{wanted.num_bytes - 1}"


def test_a_folder_travels_without_its_connection() -> None:
    folder = remote()
    assert folder.names()
    assert pickle.loads(pickle.dumps(folder)).names() == folder.names()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, one file of them no image."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 12), ("test", 4)):
        for index in range(num):
            path = tmp_path / "photos" / split / ("cat" if index % 2 else "dog ü") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 9 + index, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "train" / "cat" / "x.jpg").write_bytes(b"text")
    return tmp_path / "photos"


def test_an_image_folder_in_a_store_is_sharded_like_one_here(photos: Path, tmp_path: Path) -> None:
    RemoteFolder("s3://bucket").fs.put(str(photos), "s3://bucket/photos", recursive=True)
    run = ["--on-bad", "quarantine", "--samples-per-shard", "5"]
    assert main(["shard", "s3://bucket/photos", "s3://bucket/of-photos", "--workers", "2", *run]) == 1
    assert main(["shard", str(photos), str(tmp_path / "here"), "--workers", "1", *run]) == 1
    for split in ("train", "test"):
        there = downloaded(f"s3://bucket/of-photos/{split}", tmp_path / split)
        assert content(there) == content(tmp_path / "here" / split)
    assert main(["verify", "s3://bucket/of-photos", "--decode"]) == 0
    assert main(["info", "s3://bucket/of-photos"]) == 0


def test_an_official_set_in_a_store_is_copied_and_opened(tmp_path: Path) -> None:
    RemoteFolder("s3://bucket").fs.put("train/data/fashion_mnist_subset", "s3://bucket/fashion", recursive=True)
    assert source_splits("s3://bucket/fashion") == ("train", "test")
    here = open_source("train/data/fashion_mnist_subset", split="test")
    np.testing.assert_array_equal(open_source("s3://bucket/fashion", split="test")[7].image, here[7].image)
    with pytest.raises(ValueError, match="no files there; give the URL of a data set"):
        open_source("s3://bucket/empty")


def test_a_store_that_fails_is_not_taken_for_bad_samples(store: Proxy, photos: Path, monkeypatch: Any) -> None:
    RemoteFolder("s3://bucket").fs.put(str(photos), "s3://bucket/failing", recursive=True)
    monkeypatch.setattr("fdt_pipeline.sources.tree.RemoteFolder", lambda url: RemoteFolder(url, QUICK))
    source = open_source("s3://bucket/failing", split="test")
    store.put_in(answers(500, ".png"))
    with pytest.raises(
        SourceError, match=r"could not read sample \d of the source \(.*png\): s3://bucket/failing/.*could"
    ):
        write_shards(source, "s3://bucket/never", "keep", on_bad="quarantine")


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_shards_on_a_web_server_can_be_read(tmp_path: Path, mode: Any) -> None:
    pytest.importorskip("nvidia.dali")
    from fdt_pipeline import FDTLoader

    write_shards(SOURCE, tmp_path / "set", samples_per_shard=50)
    with web_server(tmp_path, knows_ranges=False) as web:
        url = f"{web.url}/set"
        assert len(load_shards(url)[2]) == 120
        assert sum(len(images) for images, _ in FDTLoader(url, 32, mode=mode)) == 120
        with pytest.raises(ValueError, match="a web server can only be read from; write to a path, or to s3://"):
            write_shards(SOURCE, f"{url}/new")
        with pytest.raises(ValueError, match="no shards here"):
            read_manifest(f"{url}/nothing")


def test_a_shard_that_was_changed_in_the_store_is_a_shard_error() -> None:
    write_shards(SOURCE, "s3://bucket/changed", samples_per_shard=60)
    manifest, folder = read_manifest("s3://bucket/changed"), open_folder("s3://bucket/changed")
    data = bytearray(folder.read("shard-000001.tar"))
    data[3500] ^= 1
    with folder.writing("shard-000001.tar") as file:
        file.write(data)
    with pytest.raises(ShardError, match=r"s3://bucket/changed/shard-000001.tar: .*changed"):
        load_shards("s3://bucket/changed")
    assert manifest.num_samples == 120
