"""Write a source as shards: shuffled, indexed, hashed, and whole or not at all."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from ..sources.checks import check_class_names
from ..sources.source import Source
from .atomic import atomic_file, explained, sync_folder
from .codec import check_encoding
from .encoded import EncodedSample, EncodedSamples
from .folder import MANIFEST_NAME, check_vacant, shard_files
from .manifest import Manifest, Shard
from .manifest_rules import shard_name
from .order import interleaved_order
from .progress import Progress
from .tar import TarShard


def write_shards(
    source: Source,
    out: str | Path,
    encoding: str = "raw",
    seed: int = 0,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Shards of the source in the folder `out`, made if need be; one sample is in memory at a time.

    The same source, seed and options give the same bytes in every file. If writing fails or is interrupted, no shard
    is left. With `overwrite` the old set goes first: it is lost if writing the new one fails.
    """
    out, seed = Path(out), operator.index(seed)
    check_encoding(encoding)
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    if not len(source):
        raise ValueError("the source has no samples: there is nothing to write")
    check_class_names(source.classes)
    order = interleaved_order(source.labels, len(source.classes), seed)
    samples = EncodedSamples(source, order, encoding, progress)
    check_vacant(out, overwrite)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        _remove_set(out)
    try:
        with explained(out):
            shards = _write_files(out, samples, samples_per_shard)
            manifest = _manifest(samples, shards, seed, samples_per_shard)
            with atomic_file(out / MANIFEST_NAME) as file:
                file.write(manifest.to_json().encode())
            return manifest
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            _remove_set(out, sync=False)  # a full disk may refuse to sync, but not to remove
        raise


def _write_files(out: Path, samples: EncodedSamples, samples_per_shard: int) -> tuple[Shard, ...]:
    stream, num_shards = iter(samples), -(-len(samples.order) // samples_per_shard)
    return tuple(
        _write_shard(out / shard_name(index), islice(stream, samples_per_shard)) for index in range(num_shards)
    )


def _write_shard(path: Path, samples: Iterator[EncodedSample]) -> Shard:
    with atomic_file(path) as file:
        tar = TarShard(file)
        for sample in samples:
            tar.add(sample.key, sample.members)
        tar.close()
    with atomic_file(path.with_suffix(".idx")) as file:
        file.write(tar.index)
    index_sha256 = hashlib.sha256(tar.index).hexdigest()
    return Shard(path.name, tar.num_samples, tar.file.num_bytes, tar.file.sha256, index_sha256)


def _manifest(samples: EncodedSamples, shards: tuple[Shard, ...], seed: int, samples_per_shard: int) -> Manifest:
    source, statistics = samples.source, samples.statistics
    return Manifest(
        kind=source.kind,
        split=source.split,
        classes=source.classes,
        num_samples=len(source),
        samples_per_class=tuple(np.bincount(source.labels, minlength=len(source.classes)).tolist()),
        shape=samples.shape,
        channels=len(statistics.mean),
        encoding=samples.encoding,
        seed=seed,
        samples_per_shard=samples_per_shard,
        mean=statistics.mean,
        std=statistics.std,
        shards=shards,
    )


def _remove_set(out: Path, sync: bool = True) -> None:
    """First the manifest, so that what is left if this is cut short is not taken for whole."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    if sync:
        sync_folder(out)
    for path in (*shard_files(out), *out.glob(".shard-*.tmp"), *out.glob(f".{MANIFEST_NAME}.tmp")):
        path.unlink(missing_ok=True)
