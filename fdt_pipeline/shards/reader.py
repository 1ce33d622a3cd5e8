"""Read shards into memory, each tar once, hashing the very bytes that are parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np

from ..sources.source import I64, U8
from ..storage import Folder, open_folder
from ..storage.hashing import sha256_of
from .errors import ShardError
from .files import ShardFile, files_of
from .folder import Location, check_shards, read_manifest
from .index import Member, parse_index
from .manifest import Manifest, Shard
from .progress import Progress
from .sample import parse_sample


def check_hashes(
    location: Location, manifest: Manifest, num_threads: int = 1, progress: Progress | None = None
) -> None:
    """ShardError unless every tar and index has its sha256; reads every byte, on num_threads threads."""
    folder = open_folder(location)
    files = [(shard.name, shard.sha256) for shard in manifest.shards]
    files += [(shard.index_name, shard.index_sha256) for shard in manifest.shards]
    with ThreadPoolExecutor(num_threads) as pool:
        for done, _ in enumerate(pool.map(lambda file: _check_hash(folder, *file), files), 1):
            if progress:
                progress(done, len(files))


def _check_hash(folder: Folder, name: str, sha256: str) -> None:
    with folder.open(name) as file:
        got = sha256_of(file)
    if got != sha256:
        raise _damaged(folder.path(name), sha256, got)


def _damaged(path: object, expected: str, got: str) -> ShardError:
    return ShardError(f"{path}: damaged: expected sha256 {expected}, got {got}; shard again with --overwrite")


class Loaded(NamedTuple):
    """The samples of one shard: images first .. first + m - 1 of the set."""

    first: int
    images: U8  # [m h w c]
    labels: I64  # [m]
    keys: list[str]


def load_shards(location: Location, progress: Progress | None = None) -> tuple[U8, I64, list[str]]:
    """(images u8[n h w c], labels i64[n], keys) of a whole set, in the order of its shards.

    Hashes are checked on the way. ValueError if the images differ in size.
    """
    manifest = read_manifest(location)
    shards = iterate_shards(location, manifest, progress)
    images = np.empty((manifest.num_samples, *(manifest.shape or ())), np.uint8)
    labels = np.empty(manifest.num_samples, np.int64)
    keys: list[str] = []
    for shard in shards:
        part = slice(shard.first, shard.first + len(shard.labels))
        images[part], labels[part] = shard.images, shard.labels
        keys += shard.keys
    return images, labels, keys


def iterate_shards(location: Location, manifest: Manifest, progress: Progress | None = None) -> Iterator[Loaded]:
    """The same, one shard at a time; those of a remote folder through the cache, fetched ahead."""
    folder = open_folder(location)
    if manifest.shape is None:
        raise ValueError(
            f"{folder.url}: mixed-size shards cannot be resident: stream them with a size, or shard the images at one "
            "size, with --size"
        )
    if folder.local:
        check_shards(folder, manifest)
    first = 0
    with closing(files_of(folder, manifest).in_order(manifest.shards)) as files:
        for shard, file in zip(manifest.shards, files, strict=True):
            samples = []
            for sample in _samples(file, shard, manifest):
                samples.append(sample)
                if progress:
                    progress(first + len(samples), manifest.num_samples)
            keys, images, labels = zip(*samples, strict=True)
            for key, image in zip(keys, images, strict=True):
                if image.shape != manifest.shape:
                    raise ShardError(
                        f"{file.url}: sample {key}: expected an image of {manifest.shape}, got {image.shape}"
                    )
            yield Loaded(first, np.stack(images), np.array(labels, np.int64), list(keys))
            first += len(samples)


def read_shard(location: Location, manifest: Manifest, shard: Shard) -> Iterator[tuple[str, U8, int]]:
    """(key, image u8[h w c], label) in the order of the tar; raw images are read-only views of its bytes.

    ShardError, naming shard and key, for a wrong hash or a sample that does not parse.
    """
    with closing(files_of(open_folder(location), manifest).in_order([shard])) as files:
        return _samples(next(files), shard, manifest)


def _samples(file: ShardFile, shard: Shard, manifest: Manifest) -> Iterator[tuple[str, U8, int]]:
    try:
        tar = file.tar.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{file.url}: missing; shard the source again with --overwrite") from None
    index_url = file.url.removesuffix(".tar") + ".idx"
    for url, data, sha256 in ((file.url, tar, shard.sha256), (index_url, file.index, shard.index_sha256)):
        got = hashlib.sha256(data).hexdigest()
        if got != sha256:
            raise _damaged(url, sha256, got)
    try:
        samples = parse_index(file.index.decode("ascii"), len(tar))
    except ValueError as error:
        raise ShardError(f"{index_url}: {error}") from None
    return _parsed(file.url, memoryview(tar), samples, manifest)


def _parsed(
    path: str, tar: memoryview, samples: list[list[Member]], manifest: Manifest
) -> Iterator[tuple[str, U8, int]]:
    for members in samples:
        key = members[0].name.split(".", 1)[0]
        try:
            yield key, *parse_sample(tar, members, manifest.encoding, manifest.channels)
        except ValueError as error:
            raise ShardError(f"{path}: sample {key}: {error}") from error
