"""Sharding to, reading from and verifying an object store: a real S3 API, also while it fails."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

import fdt_pipeline.storage.cache
from fdt_pipeline import FDTLoader
from fdt_pipeline.cli import main
from fdt_pipeline.shards import ShardError, convert_shards, load_shards, read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.files import CachedShardFiles
from fdt_pipeline.sources import ArraySource, open_source, source_splits
from fdt_pipeline.storage import open_folder
from fdt_pipeline.storage.cache import Cache, Entry
from fdt_pipeline.storage.remote import RemoteFolder
from fdt_pipeline.storage.retrying import Retry
from tests.folders import content, stop_after
from tests.numbered import numbered_images
from tests.peers import needs
from tests.servers import Fault, object_store, web_server

pytestmark = pytest.mark.peer

needs("moto")
needs("s3fs")

SOURCE = ArraySource(numbered_images(120, (16, 16, 3)), np.arange(120) % 4, list("abcd"))
SET = "s3://bucket/set"
IMPATIENT = {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}
QUICK = Retry(tries=4, first_wait=0.01, longest_wait=0.05)


def sharded(out, **options):
    write_shards(SOURCE, out, samples_per_shard=20, seed=3, **options)
    return out


@pytest.fixture(scope="module")
def running_store():
    with object_store() as proxy:
        sharded(SET)
        yield proxy


@pytest.fixture(autouse=True)
def store(running_store, tmp_path, monkeypatch):
    """The store without faults, a cache of the test's own, and time-outs of a second."""
    monkeypatch.setitem(fsspec.config.conf, "s3", IMPATIENT)
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path / "cache"))
    running_store.reset()
    return running_store


@pytest.fixture
def local(tmp_path):
    """The same set in a folder."""
    return Path(sharded(tmp_path / "local"))


def remote():
    return RemoteFolder(SET, QUICK)


def entry():
    shard = read_manifest(SET).shards[0]
    return Entry(remote(), shard.name, shard.num_bytes, shard.sha256)


def stored(url):
    return {name: open_folder(url).read(name) for name in open_folder(url).names()}


def wait_until(is_met):
    deadline = time.monotonic() + 300
    while not is_met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_is_written_read_converted_and_verified_like_a_folder(local, tmp_path):
    assert stored(SET) == content(local)
    assert open_folder(SET).subfolders() == [], "nothing of the staging folder is left"
    assert verify_shards(SET, decode=True) == []
    for mine, theirs in zip(load_shards(SET), load_shards(local), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    convert_shards(SET, "s3://bucket/webp", "webp", workers=2)
    convert_shards(local, tmp_path / "webp", "webp")
    assert stored("s3://bucket/webp") == content(tmp_path / "webp")


def test_an_interrupted_run_goes_on_in_a_store():
    with pytest.raises(KeyboardInterrupt):
        sharded("s3://bucket/resumed", progress=stop_after(60))
    calls = []
    sharded("s3://bucket/resumed", resume=True, workers=2, progress=lambda done, total: calls.append(done))
    assert calls == [80, 100, 120]
    assert stored("s3://bucket/resumed") == stored(SET)


def test_damage_in_a_store_is_found():
    folder = open_folder(sharded("s3://bucket/damaged"))
    data = bytearray(folder.read("shard-000001.tar"))
    data[3500] ^= 1
    with folder.writing("shard-000001.tar") as file:
        file.write(data)
    assert any(f"{folder.url}/shard-000001.tar: sample" in problem for problem in verify_shards(folder))
    with pytest.raises(ShardError, match=r"s3://bucket/damaged/shard-000001.tar: .*changed"):
        load_shards(folder)
    folder.remove("shard-000000.tar")
    assert f"{folder.url}/shard-000000.tar: missing" in verify_shards(folder)


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"status": 500}, {"cut": 1000}, {"delay": 1.5}, {"flip": True}], ids=str
)
def test_a_file_arrives_whole_in_spite_of_faults_and_those_without_end_name_it(store, tmp_path, fault):
    wanted, message = entry(), r"s3://bucket/set/shard-000000.tar: broke off at byte \d+ of \d+ .*in 4 tries"
    store.put_in(Fault(".tar", **fault))
    with pytest.raises(OSError, match=message), Cache(tmp_path / "c").leased(wanted):
        pass
    store.reset()
    store.put_in(Fault(".tar", **fault), times=2)
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    assert len(store.gets(".tar")) >= 3


def test_a_second_reader_fetches_nothing(store):
    load_shards(SET)
    store.requests.clear()
    load_shards(SET)
    assert store.gets(".tar") == store.gets(".idx") == []


def test_shards_are_fetched_ahead_in_order_and_let_go(store, tmp_path):
    shards = read_manifest(SET).shards
    files = CachedShardFiles(remote(), Cache(tmp_path / "c", 4 * shards[0].num_bytes))
    reader = files.in_order(shards)
    first = next(reader)
    assert first.tar.read_bytes()
    wait_until(lambda: len(store.gets(".tar")) == 3)  # two more fit into half of the cache
    assert [first.url, *(file.url for file in reader)] == [f"{SET}/{shard.name}" for shard in shards]
    assert files.cache.num_bytes() <= files.cache.max_bytes
    assert len(store.gets(".tar")) == len(shards), "each is fetched once"


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_loader_of_a_store_gives_what_one_of_a_folder_does(local, mode, monkeypatch):
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE_BYTES", str(3 * read_manifest(local).shards[0].num_bytes))
    window = None if mode == "resident" else 40
    loaders = [FDTLoader(place, 32, mode=mode, seed=5, ring=window) for place in (SET, local)]
    for _ in range(2):
        for (images, targets), (images_here, targets_here) in zip(*loaders, strict=True):
            np.testing.assert_array_equal(images.numpy(), images_here.numpy())
            np.testing.assert_array_equal(targets.numpy(), targets_here.numpy())


def test_a_failing_store_is_an_error_of_the_loader_that_names_the_shard(store):
    loader = FDTLoader(SET, 32, mode="streaming", ring=40)
    loader.shards.retry = QUICK
    store.put_in(Fault(".tar", status=500))
    with pytest.raises(OSError, match=r"s3://bucket/set/shard-00000\d.tar: broke off at byte 0"):
        list(loader)


def _read(directory, max_shards, seed, queue):
    """Read all shards three times, in an order of this process alone."""
    shards = list(read_manifest(SET).shards) * 3
    random.Random(seed).shuffle(shards)
    cache = Cache(Path(directory), max_shards * shards[0].num_bytes)
    num_read = 0
    for file, shard in zip(CachedShardFiles(remote(), cache).in_order(shards), shards, strict=True):
        # A file that is renamed while all are counted may count twice.
        is_bounded = any(cache.num_bytes() <= cache.max_bytes for _ in range(5))
        num_read += file.tar.stat().st_size == shard.num_bytes and is_bounded
        time.sleep(0.02)
    queue.put(num_read)


@pytest.mark.parametrize("max_shards", [4, 100])
def test_processes_share_a_cache_and_do_not_wait_for_each_other_where_it_is_small(store, tmp_path, max_shards):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_read, args=(str(tmp_path / "c"), max_shards, seed, queue), daemon=True)
        for seed in range(4)
    ]
    for process in processes:
        process.start()
    try:
        assert [queue.get(timeout=300) for _ in processes] == [18] * 4
    finally:
        for process in processes:
            process.terminate()
            process.join()
    assert len(store.gets(".tar")) == 6 or max_shards == 4, "each file is fetched once"


def _fetch_in_small_blocks(directory):
    fdt_pipeline.storage.cache.BLOCK_BYTES = 5000
    with Cache(Path(directory)).leased(entry()):
        pass


def test_what_a_killed_process_had_fetched_is_gone_on_with(store, tmp_path):
    wanted = entry()
    store.put_in(Fault(".tar", span="bytes=20000", delay=60))
    process = multiprocessing.get_context("spawn").Process(target=_fetch_in_small_blocks, args=(str(tmp_path / "c"),))
    process.start()
    wait_until(lambda: any(part.stat().st_size >= 20_000 for part in (tmp_path / "c").glob("*.part")))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.reset()
    with Cache(tmp_path / "c").leased(wanted) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256
    assert store.gets(".tar")[0] == f"bytes=20000-{wanted.num_bytes - 1}"


def test_an_image_folder_in_a_store_is_sharded_like_one_here(tmp_path):
    """train/ and test/ of two classes, one file of them no image."""
    photos = tmp_path / "photos"
    for split, num in (("train", 12), ("test", 4)):
        for index in range(num):
            path = photos / split / ("cat" if index % 2 else "dog ü") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(SOURCE.images[index, :, : 9 + index % 3]).save(path)
    (photos / "train" / "cat" / "x.jpg").write_bytes(b"text")
    RemoteFolder("s3://bucket").fs.put(str(photos), "s3://bucket/photos", recursive=True)
    run = ["--on-bad", "quarantine", "--samples-per-shard", "5"]
    assert main(["shard", "s3://bucket/photos", "s3://bucket/of-photos", "--workers", "2", *run]) == 1
    assert main(["shard", str(photos), str(tmp_path / "here"), "--workers", "1", *run]) == 1
    for split in ("train", "test"):
        assert stored(f"s3://bucket/of-photos/{split}") == content(tmp_path / "here" / split)
    assert main(["verify", "s3://bucket/of-photos", "--decode"]) == 0
    assert main(["info", "s3://bucket/of-photos"]) == 0


def test_an_official_set_in_a_store_is_copied_and_opened():
    RemoteFolder("s3://bucket").fs.put("train/data/fashion_mnist_subset", "s3://bucket/fashion", recursive=True)
    assert source_splits("s3://bucket/fashion") == ("train", "test")
    here = open_source("train/data/fashion_mnist_subset", split="test")
    np.testing.assert_array_equal(open_source("s3://bucket/fashion", split="test")[7].image, here[7].image)
    with pytest.raises(ValueError, match="no files there; give the URL of a data set"):
        open_source("s3://bucket/empty")


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_shards_on_a_web_server_can_be_read(local, tmp_path, mode):
    with web_server(tmp_path, knows_ranges=False) as web:
        url = f"{web.url}/local"
        assert sum(len(images) for images, _ in FDTLoader(url, 32, mode=mode)) == 120
        with pytest.raises(ValueError, match="a web server can only be read from; write to a path, or to s3://"):
            write_shards(SOURCE, f"{url}/new")
        with pytest.raises(ValueError, match="no shards here"):
            read_manifest(f"{url}/nothing")
