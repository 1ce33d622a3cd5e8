"""manifest.json: what a set of shards holds. It is written last, so where it is, the set is whole."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

FORMAT_VERSION = 1
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """One tar, its size in bytes, and the sha256 (hexadecimal) of it and of its index."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):  # a name with a path in it would lead out of the folder
            raise ValueError(f"expected a shard name such as shard-000000.tar, got {self.name!r}")

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".idx"


@dataclass(frozen=True)
class Manifest:
    """shape is (h, w, c), or None if sizes differ; mean and std are per channel, in 0..255."""

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
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        of_shards = sum(shard.num_samples for shard in self.shards)
        if not self.num_samples == sum(self.samples_per_class) == of_shards:
            raise ValueError(
                f"num_samples is {self.num_samples}, but samples_per_class sum to {sum(self.samples_per_class)} "
                f"and the shards to {of_shards}"
            )
        if len(self.classes) != len(self.samples_per_class):
            raise ValueError(f"{len(self.classes)} classes, but {len(self.samples_per_class)} samples_per_class")
        if not self.channels == len(self.mean) == len(self.std):
            raise ValueError(
                f"channels is {self.channels}, but mean has {len(self.mean)} and std {len(self.std)} values"
            )

        if self.shape is not None and (len(self.shape) != 3 or self.shape[2] != self.channels):
            raise ValueError(f"shape must be [h w {self.channels}] or null, got {list(self.shape)}")

    def to_json(self) -> str:
        """No timestamp and no path: the same set has the same manifest."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def manifest_from_json(text: str) -> Manifest:
    """ValueError for broken JSON, another format version, and fields that are missing, unknown or of a wrong type."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"expected format_version {FORMAT_VERSION}, got {version}; shard the source again")
    return _parse(Manifest, _MANIFEST_FIELDS, content)


def _parse(record: Callable[..., _T], fields: dict[str, Callable[[Any], Any]], content: Any) -> _T:
    missing, unknown = sorted(fields.keys() - content.keys()), sorted(content.keys() - fields.keys())
    if missing or unknown:
        raise ValueError(f"missing fields: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    values = {}
    for name, read in fields.items():
        try:
            values[name] = read(content[name])
        except (TypeError, AttributeError) as error:
            raise ValueError(f"field {name}: {error}") from None
    return record(**values)


def _a(expected: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, expected) or isinstance(value, bool):
            raise TypeError(f"expected {expected.__name__}, got {value!r}")
        return value

    return read


def _each(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: tuple(read(value) for value in _a(list)(values))


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_SHARD_FIELDS = {
    "name": _a(str),
    "num_samples": _a(int),
    "num_bytes": _a(int),
    "sha256": _a(str),
    "index_sha256": _a(str),
}
_MANIFEST_FIELDS = {
    "kind": _a(str),
    "split": _optional(_a(str)),
    "classes": _each(_a(str)),
    "num_samples": _a(int),
    "samples_per_class": _each(_a(int)),
    "shape": _optional(_each(_a(int))),
    "channels": _a(int),
    "encoding": _a(str),
    "seed": _a(int),
    "samples_per_shard": _a(int),
    "mean": _each(_a(float)),
    "std": _each(_a(float)),
    "shards": _each(lambda content: _parse(Shard, _SHARD_FIELDS, content)),
    "format_version": _a(int),
}
