"""What must hold between the fields of a manifest, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..sources.checks import check_class_names
from .checksums import unpack_checksums
from .codec import EXTENSIONS, check_encoding

if TYPE_CHECKING:
    from .manifest import Manifest, Shard


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def check_manifest(manifest: Manifest) -> None:
    """ValueError for the first rule that does not hold."""
    check_encoding(manifest.encoding)
    check_class_names(manifest.classes)
    for rules in (_of_numbers, _of_classes, _of_extensions, _of_pixels, _of_shards):
        for fault in rules(manifest):
            raise ValueError(fault)


def check_shard(shard: Shard) -> None:
    """ValueError unless its numbers and hashes can be those of a shard."""
    if min(shard.num_samples, shard.num_bytes) < 1:
        raise ValueError(
            f"{shard.name}: num_samples and num_bytes must be at least 1, got {shard.num_samples}, {shard.num_bytes}"
        )
    for sha256 in (shard.sha256, shard.index_sha256):
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"{shard.name}: a sha256 must be 64 digits 0..f, got {sha256[:80]!r}")
    try:
        num_checksums = len(unpack_checksums(shard.crc32))
    except ValueError as error:
        raise ValueError(f"{shard.name}: {error}") from None
    if num_checksums != shard.num_samples:
        raise ValueError(f"{shard.name}: {shard.num_samples} samples, but {num_checksums} values in crc32")


def _of_numbers(manifest: Manifest) -> Iterator[str]:
    if not 0 <= manifest.seed < 2**64:
        yield f"seed must be in [0, 2**64), got {manifest.seed}"
    for name in ("num_samples", "samples_per_shard", "channels", "max_shard_bytes", "size"):
        value = getattr(manifest, name)
        if value is not None and value < 1:
            yield f"{name} must be at least 1, got {value}"


def _of_classes(manifest: Manifest) -> Iterator[str]:
    of_classes, of_shards = sum(manifest.samples_per_class), sum(shard.num_samples for shard in manifest.shards)
    if not manifest.num_samples == of_classes == of_shards:
        yield (
            f"num_samples is {manifest.num_samples}, but samples_per_class sum to {of_classes} "
            f"and the shards to {of_shards}"
        )
    if min(manifest.samples_per_class) < 0:
        yield f"samples_per_class must not be negative, got {min(manifest.samples_per_class)}"
    if len(manifest.classes) != len(manifest.samples_per_class):
        yield f"{len(manifest.classes)} classes, but {len(manifest.samples_per_class)} samples_per_class"


def _of_extensions(manifest: Manifest) -> Iterator[str]:
    counts, known = manifest.samples_per_extension, EXTENSIONS[manifest.encoding]
    if counts is None:
        return
    if not set(counts) <= set(known) or sum(counts.values()) != manifest.num_samples or min(counts.values()) < 1:
        yield (
            f"samples_per_extension must be at least 1 of each of {', '.join(known)} that is there, and "
            f"{manifest.num_samples} in all, got {counts}"
        )


def _of_pixels(manifest: Manifest) -> Iterator[str]:
    channels, shape, mean, std = manifest.channels, manifest.shape, manifest.mean, manifest.std
    if not channels == len(mean) == len(std):
        yield f"channels is {channels}, but mean has {len(mean)} and std {len(std)} values"
    if shape is not None and (len(shape) != 3 or shape[2] != channels or min(shape) < 1):
        yield f"shape must be [h w {channels}], h and w at least 1, or null, got {list(shape)}"
    if not all(0 <= value <= 255 for value in mean):
        yield f"mean must be within 0..255, got {list(mean)}"
    if not all(0 <= value <= 255 for value in std):
        yield f"std must be within 0..255, got {list(std)}"


def _of_shards(manifest: Manifest) -> Iterator[str]:
    for index, shard in enumerate(manifest.shards):
        if shard.name != shard_name(index):
            yield f"shards must be in order and each there once: expected {shard_name(index)}, got {shard.name}"
