"""manifest.json: what a set of shards holds. It is written last, so where it is, the set is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..sources.source import check_class_names
from .codec import EXTENSIONS, ShardingOptions
from .tar import unpack_checksums

FORMAT_VERSION = 2
SHA256_FIELD = "manifest_sha256"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


class ShardError(ValueError):
    """Shards are not what their manifest says. Names the shard, what was expected and what was found."""


@dataclass(frozen=True)
class Shard:
    """One tar, its size in bytes, the sha256 (hexadecimal) of it and of its index, and the checksums of its samples
    (`tar.pack_checksums`)."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str
    crc32: str = field(repr=False)

    def __post_init__(self) -> None:
        for fault in _faults_of_shard(self):
            raise ValueError(f"{self.name}: {fault}")

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".idx"


@dataclass(frozen=True)
class Quarantined:
    """A sample of the source that is in no shard: its position and key there, and why."""

    position: int
    key: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """shape is (h, w, c), or None if sizes differ; mean and std are per channel, in 0..255. size: the side that images
    were resized and cropped to, if they were. keys: KEY -> key in the source, where it cannot be read off the KEY
    (key.py). quarantine: the samples of the source that are in no shard. samples_per_extension: how many images are
    stored as what."""

    kind: str
    split: str | None
    classes: tuple[str, ...]
    num_samples: int
    samples_per_class: tuple[int, ...]
    shape: tuple[int, int, int] | None
    channels: int
    encoding: str
    seed: int
    samples_per_shard: int
    max_shard_bytes: int | None
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shards: tuple[Shard, ...]
    keys: dict[str, str]
    quarantine: tuple[Quarantined, ...]
    samples_per_extension: dict[str, int]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        # Made only to check them.
        ShardingOptions(self.encoding, self.size, self.samples_per_shard, self.max_shard_bytes, self.seed)
        check_class_names(self.classes)
        for fault in _faults(self):
            raise ValueError(fault)

    @property
    def sha256(self) -> str:
        """The sha256 of all fields, as JSON with sorted keys and without blanks."""
        fields = json.dumps(self._written(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(fields.encode("ascii")).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All fields and, last, manifest_sha256."""
        return {**self._written(), SHA256_FIELD: self.sha256}

    def to_json(self) -> str:
        """JSON without a time or a path: the same set has the same manifest."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def _written(self) -> dict[str, Any]:
        """The fields as they are written: without `samples_per_extension` where the encoding has one extension."""
        fields = dataclasses.asdict(self)
        if len(EXTENSIONS[self.encoding]) == 1:
            del fields["samples_per_extension"]
        return fields


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def manifest_from_json(text: str) -> Manifest:
    """ValueError unless it is, byte for byte, what `to_json` wrote: broken JSON, another format version, fields that
    are missing, unknown, of a wrong type or at odds with each other, and any other change."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("expected a JSON object, got one nested without end") from None
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"expected format_version {FORMAT_VERSION}, an integer, got {version!r}")
    extensions = EXTENSIONS.get(str(content.get("encoding")), ("npy",))  # an unknown one is refused below
    if len(extensions) == 1:
        content = {"samples_per_extension": {extensions[0]: content.get("num_samples")}, **content}
    values = _read_fields({**get_type_hints(Manifest), SHA256_FIELD: str}, content)
    sha256 = values.pop(SHA256_FIELD)
    manifest = Manifest(**values)
    if sha256 != manifest.sha256:
        raise ValueError(
            f"was changed by hand or damaged: expected {SHA256_FIELD} {manifest.sha256}, got {sha256[:80]}"
        )
    if text != manifest.to_json():
        raise ValueError("was changed by hand or damaged after it was written")
    return manifest


def _read_fields(types: dict[str, Any], content: Any) -> dict[str, Any]:
    """A JSON object as the fields of a dataclass; ValueError if some are missing, unknown or of another type."""
    missing, unknown = sorted(types.keys() - content.keys()), sorted(content.keys() - types.keys())
    if missing or unknown:
        raise ValueError(f"missing fields: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    values = {}
    for name, expected in types.items():
        try:
            values[name] = _read(expected, content[name])
        except (TypeError, AttributeError) as error:
            raise ValueError(f"field {name}: {error}") from None
    return values


def _read(expected: Any, value: Any) -> Any:
    """A JSON value as one of a type that fields have here: lists become tuples, objects dataclasses."""
    form, parts = get_origin(expected), get_args(expected)
    if form is UnionType:  # "... | None"
        return None if value is None else _read(parts[0], value)
    if form is tuple:
        return tuple(_read(parts[0], item) for item in _read(list, value))
    if form is dict:
        return {_read(parts[0], key): _read(parts[1], item) for key, item in _read(dict, value).items()}
    if dataclasses.is_dataclass(expected):
        return expected(**_read_fields(get_type_hints(expected), value))  # type: ignore[operator]
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"expected {expected.__name__}, got {value!r}")
    return value


def _faults_of_shard(shard: Shard) -> Iterator[str]:
    """Why its numbers and hashes cannot be those of a shard."""
    if min(shard.num_samples, shard.num_bytes) < 1:
        yield f"num_samples and num_bytes must be at least 1, got {shard.num_samples}, {shard.num_bytes}"
    for sha256 in (shard.sha256, shard.index_sha256):
        if not _SHA256.fullmatch(sha256):
            yield f"a sha256 must be 64 digits 0..f, got {sha256[:80]!r}"
    try:
        num_checksums = len(unpack_checksums(shard.crc32))
    except ValueError as error:
        yield str(error)
        return
    if num_checksums != shard.num_samples:
        yield f"{shard.num_samples} samples, but {num_checksums} values in crc32"


def _faults(manifest: Manifest) -> Iterator[str]:
    """Why the fields contradict each other."""
    for name in ("num_samples", "channels"):
        if getattr(manifest, name) < 1:
            yield f"{name} must be at least 1, got {getattr(manifest, name)}"
    yield from _faults_of_counts(manifest)
    yield from _faults_of_pixels(manifest)
    for index, shard in enumerate(manifest.shards):  # so no name leads out of the folder
        if shard.name != shard_name(index):
            yield f"shards must be in order and each there once: expected {shard_name(index)}, got {shard.name}"


def _faults_of_counts(manifest: Manifest) -> Iterator[str]:
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
    counts, known = manifest.samples_per_extension, EXTENSIONS[manifest.encoding]
    if not set(counts) <= set(known) or sum(counts.values()) != manifest.num_samples or min(counts.values()) < 1:
        yield (
            f"samples_per_extension must be at least 1 of each of {', '.join(known)} that is there, and "
            f"{manifest.num_samples} in all, got {counts}"
        )


def _faults_of_pixels(manifest: Manifest) -> Iterator[str]:
    channels, shape, mean, std = manifest.channels, manifest.shape, manifest.mean, manifest.std
    if not channels == len(mean) == len(std):
        yield f"channels is {channels}, but mean has {len(mean)} and std {len(std)} values"
    if shape is not None and (len(shape) != 3 or shape[2] != channels or min(shape) < 1):
        yield f"shape must be [h w {channels}], h and w at least 1, or null, got {list(shape)}"
    for name, values in (("mean", mean), ("std", std)):
        if not all(0 <= value <= 255 for value in values):
            yield f"{name} must be within 0..255, got {list(values)}"
