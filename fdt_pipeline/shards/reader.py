"""Read shards into memory, each tar once, hashing the very bytes that are parsed.

A shard's bytes are hashed, parsed and copied on a few threads: hashing takes most of the time, and neither it nor
copying holds Python's lock. Raw images of one size are checked and copied all at once, others decoded one by one.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..machine import available_cpus
from ..sources.source import I64, U8
from ..storage import Folder, located, open_folder
from ..storage.atomic import sha256_of
from .codec import not_raw, raw_images
from .files import LocalShardFiles, ShardFile, files_of
from .folder import Location, check_shards, read_manifest, remedy_of
from .index import IndexColumns, key_of, readable
from .manifest import Manifest, Shard, ShardError
from .progress import Progress
from .stored import StoredForm

MAX_THREADS = 4  # by default: four hash 4 GB a second


def check_hashes(
    location: Location, manifest: Manifest, num_threads: int = 1, progress: Progress | None = None
) -> None:
    """ShardError unless every tar and index has its sha256; reads every byte, on num_threads threads."""
    folder, files = open_folder(location), manifest.files
    with ThreadPoolExecutor(num_threads) as pool:
        check = partial(_check_hash, folder, manifest)
        for done, _ in enumerate(pool.map(lambda file: check(*file), files.items()), 1):
            if progress:
                progress(done, len(files))


def _check_hash(folder: Folder, manifest: Manifest, name: str, sha256: str) -> None:
    there, file_name = located(folder, name)
    with there.open(file_name) as file:
        got = sha256_of(file)
    if got != sha256:
        raise _damaged(there.path(file_name), sha256, got, manifest)


def _damaged(path: object, expected: str, got: str, manifest: Manifest) -> ShardError:
    return ShardError(f"{path}: damaged: expected sha256 {expected}, got {got}; {remedy_of(manifest)}")


@dataclass(frozen=True)
class Loaded:
    """The samples of one shard: images first .. first + m - 1 of the set. names: of the images' files in the tar."""

    first: int
    images: Any  # u8[m h w c], or a list of u8[h w c] where the set's images differ in size
    labels: I64  # [m]
    names: list[str]

    @property
    def keys(self) -> list[str]:
        return [readable(key_of(name)) for name in self.names]


def load_shards(
    location: Location, progress: Progress | None = None, num_threads: int | None = None
) -> tuple[U8, I64, list[str]]:
    """(images u8[n h w c], labels i64[n], keys) of a whole set, in the order of its shards.

    Hashes are checked on the way. num_threads: as for `iterate_shards`. ValueError if the images differ in size.
    """
    folder = open_folder(location)
    manifest = read_manifest(folder)
    if manifest.shape is None:
        raise ValueError(
            f"{folder.url}: mixed-size shards cannot be resident: stream them with a size, or shard the images at one "
            "size, with --size"
        )
    images = np.empty((manifest.num_samples, *manifest.shape), np.uint8)
    labels = np.empty(manifest.num_samples, np.int64)
    keys: list[str] = []
    for shard in iterate_shards(folder, manifest, progress, num_threads):
        part = slice(shard.first, shard.first + len(shard.labels))
        images[part], labels[part] = shard.images, shard.labels
        keys += shard.keys
    return images, labels, keys


def iterate_shards(
    location: Location, manifest: Manifest, progress: Progress | None = None, num_threads: int | None = None
) -> Generator[Loaded, None, None]:
    """The samples of a set, one shard at a time, in order; those of a remote folder through the cache, fetched ahead.

    num_threads: how many read, hash and decode; by default one for each CPU that is available, at most 4. At most
    num_threads + 1 shards are in memory. ShardError, naming shard and key, for a wrong hash or a sample that is not
    what the manifest says. progress counts samples, a shard at a time.
    """
    folder = open_folder(location)
    if folder.local:
        check_shards(folder, manifest)
    num_threads = num_threads or min(MAX_THREADS, available_cpus())
    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(num_threads, "fdt_pipeline load")
    try:
        set_files = files_of(folder, manifest)
        with closing(set_files.in_order(manifest.shards)) as files:
            first = 0
            for shard, file in zip(manifest.shards, files, strict=True):
                # A file in the cache may be removed when the next is asked for, so it is read here.
                tar = None if isinstance(set_files, LocalShardFiles) else file.tar.read_bytes()
                waiting.append(pool.submit(_load, file, shard, manifest, first, tar))
                first += shard.num_samples
                if len(waiting) >= num_threads:
                    yield _next(waiting, manifest, progress)
            while waiting:
                yield _next(waiting, manifest, progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[Future[Loaded]], manifest: Manifest, progress: Progress | None) -> Loaded:
    loaded = waiting.popleft().result()
    if progress:
        progress(loaded.first + len(loaded.labels), manifest.num_samples)
    return loaded


def _load(file: ShardFile, shard: Shard, manifest: Manifest, first: int, tar: bytes | None) -> Loaded:
    data, samples, labels = _checked(file, shard, manifest, tar)
    if manifest.encoding != "raw" or manifest.shape is None:
        images = _decoded(file, data, samples, manifest)
        return Loaded(first, np.stack(images) if manifest.shape else images, labels, samples.names)
    try:
        raw, wrong = raw_images(data[samples.begins[0] :], samples, manifest.shape)
    except ValueError as error:
        raise ShardError(f"{file.url}: {error}") from None
    if wrong:
        raise _bad(file, samples, wrong[0], not_raw(manifest.shape))
    return Loaded(first, np.ascontiguousarray(raw), labels, samples.names)


def _checked(file: ShardFile, shard: Shard, manifest: Manifest, tar: bytes | None) -> tuple[U8, IndexColumns, I64]:
    """(all bytes of the tar, its index, labels), when the hashes are right and every label is that of a class."""
    try:
        tar = tar or file.tar.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{file.url}: missing; {remedy_of(manifest)}") from None
    for url, content, sha256 in ((file.url, tar, shard.sha256), (file.index_url, file.index, shard.index_sha256)):
        got = hashlib.sha256(content).hexdigest()
        if got != sha256:
            raise _damaged(url, sha256, got, manifest)
    form = StoredForm.of(manifest)
    try:
        samples = form.columns(file.index, shard)
    except ValueError as error:
        raise ShardError(f"{file.index_url}: {error}") from None
    data = np.frombuffer(tar, np.uint8)
    labels, bad = form.labels(data[samples.begins[0] :], samples)
    for number, reason in bad.items():
        raise _bad(file, samples, number, reason)
    return data, samples, labels


def _decoded(file: ShardFile, data: U8, samples: IndexColumns, manifest: Manifest) -> list[U8]:
    """Each image; raw ones are read-only views of the data."""
    form, images, ends = StoredForm.of(manifest), [], samples.image_offsets + samples.image_sizes
    for number, (begin, end) in enumerate(zip(samples.image_offsets.tolist(), ends.tolist(), strict=True)):
        try:
            image = form.pixels(data[begin:end].data, samples.extensions[number])
            if manifest.shape not in (None, image.shape):
                raise ValueError(f"expected an image of {manifest.shape}, got {image.shape}")
        except ValueError as error:
            raise _bad(file, samples, number, str(error)) from error
        images.append(image)
    return images


def _bad(file: ShardFile, samples: IndexColumns, number: int, reason: str) -> ShardError:
    return ShardError(f"{file.url}: sample {samples.key(number)}: {reason}")
