"""Read shards into memory, each tar once, hashing the very bytes that are parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..sources.source import I64, U8
from .codec import EXTENSIONS, decode
from .errors import ShardError
from .folder import read_manifest
from .index import Member, parse_index
from .manifest import Manifest
from .progress import Progress


def check_shards(folder: str | Path, manifest: Manifest) -> None:
    """Cheap: ShardError unless every tar is there with its size, and every index is there."""
    for shard in manifest.shards:
        path = Path(folder) / shard.name
        for file in (path, path.with_name(shard.index_name)):
            if not file.is_file():
                raise ShardError(f"{file}: missing; shard the source again with --overwrite")
        got = path.stat().st_size
        if got != shard.num_bytes:
            raise ShardError(f"{path}: expected {shard.num_bytes} bytes, got {got}; shard again with --overwrite")


def check_hashes(
    folder: str | Path, manifest: Manifest, num_threads: int = 1, progress: Progress | None = None
) -> None:
    """ShardError unless every tar and index has its sha256; reads every byte, on num_threads threads."""
    folder = Path(folder)
    files = [(folder / shard.name, shard.sha256) for shard in manifest.shards]
    files += [(folder / shard.index_name, shard.index_sha256) for shard in manifest.shards]
    with ThreadPoolExecutor(num_threads) as pool:
        for done, _ in enumerate(pool.map(lambda file: _check_hash(*file), files), 1):
            if progress:
                progress(done, len(files))


def _check_hash(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise _damaged(path, sha256, digest.hexdigest())


def _damaged(path: Path, expected: str, got: str) -> ShardError:
    return ShardError(f"{path}: damaged: expected sha256 {expected}, got {got}; shard again with --overwrite")


def read_shard(
    path: str | Path, encoding: str, verify_sha256: str | None = None, verify_index_sha256: str | None = None
) -> Iterator[tuple[str, U8, int]]:
    """(key, image u8[h w c], label) in the order of the tar; raw images are read-only views of its bytes.

    ShardError, naming shard and key, for a wrong hash or a sample that does not parse.
    """
    path = Path(path)
    tar, index = _read(path, verify_sha256), _read(path.with_suffix(".idx"), verify_index_sha256)
    return _samples(path, tar, index, encoding)


class Loaded(NamedTuple):
    """The samples of one shard: images first .. first + m - 1 of the set."""

    first: int
    images: U8  # [m h w c]
    labels: I64  # [m]
    keys: list[str]


def load_shards(folder: str | Path, progress: Progress | None = None) -> tuple[U8, I64, list[str]]:
    """(images u8[n h w c], labels i64[n], keys) of a whole set, in the order of its shards.

    Hashes are checked on the way. ValueError if the images differ in size.
    """
    manifest = read_manifest(folder)
    shards = iterate_shards(folder, manifest, progress)
    images = np.empty((manifest.num_samples, *(manifest.shape or ())), np.uint8)
    labels = np.empty(manifest.num_samples, np.int64)
    keys: list[str] = []
    for shard in shards:
        part = slice(shard.first, shard.first + len(shard.labels))
        images[part], labels[part] = shard.images, shard.labels
        keys += shard.keys
    return images, labels, keys


def iterate_shards(folder: str | Path, manifest: Manifest, progress: Progress | None = None) -> Iterator[Loaded]:
    """The same, one shard at a time."""
    if manifest.shape is None:
        raise ValueError(
            f"{folder}: mixed-size shards cannot be resident: stream them with a size, or shard the images at one size"
        )
    check_shards(folder, manifest)
    first = 0
    for shard in manifest.shards:
        path = Path(folder) / shard.name
        samples = []
        for sample in read_shard(path, manifest.encoding, shard.sha256, shard.index_sha256):
            samples.append(sample)
            if progress:
                progress(first + len(samples), manifest.num_samples)
        keys, images, labels = zip(*samples, strict=True)
        for key, image in zip(keys, images, strict=True):
            if image.shape != manifest.shape:
                raise ShardError(f"{path}: sample {key}: expected an image of {manifest.shape}, got {image.shape}")
        yield Loaded(first, np.stack(images), np.array(labels, np.int64), list(keys))
        first += len(samples)


def _read(path: Path, sha256: str | None) -> bytes:
    """The file's bytes; ShardError unless they have the sha256."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; shard the source again with --overwrite") from None
    if sha256 is not None:
        check_sha256(path, data, sha256)
    return data


def check_sha256(path: Path, data: bytes, expected: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise _damaged(path, expected, got)


def _samples(path: Path, tar: bytes, index: bytes, encoding: str) -> Iterator[tuple[str, U8, int]]:
    try:
        samples = parse_index(index.decode("ascii"))
    except ValueError as error:
        raise ShardError(f"{path.with_suffix('.idx')}: {error}") from None
    view = memoryview(tar)
    for members in samples:
        key = members[0].name.split(".", 1)[0]
        try:
            yield key, *parse_sample(view, members, encoding)
        except ValueError as error:
            raise ShardError(f"{path}: sample {key}: {error}") from error


def parse_sample(tar: memoryview, members: list[Member], encoding: str) -> tuple[U8, int]:
    """ValueError if the members are not an image and a label, in that order."""
    if [member.extension for member in members] != [EXTENSIONS[encoding], "cls"]:
        names = ", ".join(member.name for member in members)
        raise ValueError(f"expected the members .{EXTENSIONS[encoding]} and .cls, got {names}")
    image, label = (tar[member.offset : member.offset + member.size] for member in members)
    return decode(image, encoding), int(bytes(label))
