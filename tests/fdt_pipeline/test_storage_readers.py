"""Several processes that read shards through one cache which has room for few of them."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.shards.files import CachedShardFiles
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.storage.cache import Cache
from fdt_pipeline.storage.remote import RemoteFolder
from tests.object_store import object_store
from tests.peers import needs

pytestmark = pytest.mark.peer

needs("moto")
needs("s3fs")

IMAGES = np.random.default_rng(0).integers(0, 256, (240, 16, 16, 3), dtype=np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(240) % 4, list("abcd"))


def _read(directory: str, seed: int, queue: Any) -> None:
    """All shards three times, in an order of its own."""
    shards = list(read_manifest("s3://bucket/set").shards) * 3
    random.Random(seed).shuffle(shards)
    cache = Cache(Path(directory), 4 * shards[0].num_bytes)
    num_read = 0
    for file, shard in zip(
        CachedShardFiles(RemoteFolder("s3://bucket/set"), cache).in_order(shards), shards, strict=True
    ):
        # A file that is renamed while all are counted may count twice.
        is_bounded = any(cache.num_bytes() <= cache.max_bytes for _ in range(5))
        num_read += file.tar.stat().st_size == shard.num_bytes and is_bounded
        time.sleep(0.02)
    queue.put(num_read)


def test_readers_of_a_small_cache_do_not_wait_for_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with object_store():
        RemoteFolder("s3://bucket").fs.mkdir("s3://bucket")
        write_shards(SOURCE, "s3://bucket/set", samples_per_shard=20, seed=3)
        arguments = [(str(tmp_path / "cache"), seed, queue) for seed in range(4)]
        processes = [context.Process(target=_read, args=those, daemon=True) for those in arguments]
        for process in processes:
            process.start()
        try:
            assert [queue.get(timeout=300) for _ in processes] == [36] * 4
        finally:
            for process in processes:
                process.terminate()
                process.join()
