"""manifest.json: what a set of shards holds. It is written last, so where it is, the set is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .codec import EXTENSIONS
from .manifest_rules import check_manifest, check_shard
from .record import Quarantined

FORMAT_VERSION = 2
SHA256_FIELD = "manifest_sha256"
_COUNTS = "samples_per_extension"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """One tar, its size in bytes, the sha256 (hexadecimal) of it and of its index, and the checksums of its samples
    (checksums.py)."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str
    crc32: str = field(repr=False)

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):  # a name with a path in it would lead out of the folder
            raise ValueError(f"expected a shard name such as shard-000000.tar, got {self.name!r}")
        check_shard(self)

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".idx"


@dataclass(frozen=True)
class Manifest:
    """shape is (h, w, c), or None if sizes differ; mean and std are per channel, in 0..255. size: the side that images
    were resized and cropped to, if they were. keys: KEY -> key in the source, where it cannot be read off the KEY
    (key.py). quarantine: the samples of the source that are in no shard. samples_per_extension: where an encoding has
    several ("keep"); None of other encodings, and of sets that were made before it was counted."""

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
    samples_per_extension: dict[str, int] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_manifest(self)

    @property
    def sha256(self) -> str:
        """Of all fields, as JSON with sorted keys and without blanks."""
        fields = json.dumps(self._fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(fields.encode("ascii")).hexdigest()

    @property
    def stored_as(self) -> dict[str, int | None]:
        """Extension of the images' files -> how many; None where the set was made before that was counted."""
        extensions = EXTENSIONS[self.encoding]
        if len(extensions) == 1:
            return {extensions[0]: self.num_samples}
        return {**(self.samples_per_extension or dict.fromkeys(extensions))}

    def to_dict(self) -> dict[str, Any]:
        """All fields and, last, manifest_sha256."""
        return {**self._fields(), SHA256_FIELD: self.sha256}

    def to_json(self) -> str:
        """No timestamp and no path: the same set has the same manifest."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if self.samples_per_extension is None:
            del fields[_COUNTS]
        return fields


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
    fields = {name: read for name, read in _MANIFEST_FIELDS.items() if name != _COUNTS or name in content}
    manifest = _parse(_checked_manifest, {**fields, SHA256_FIELD: _a(str)}, content)
    if text != manifest.to_json():
        raise ValueError("was changed by hand or damaged after it was written")
    return manifest


def _checked_manifest(manifest_sha256: str, **fields: Any) -> Manifest:
    manifest = Manifest(**fields)
    if manifest_sha256 != manifest.sha256:
        raise ValueError(
            f"was changed by hand or damaged: expected {SHA256_FIELD} {manifest.sha256}, got {manifest_sha256[:80]}"
        )
    return manifest


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
    "crc32": _a(str),
}
_QUARANTINED_FIELDS = {"position": _a(int), "key": _a(str), "reason": _a(str)}
_MANIFEST_FIELDS: dict[str, Callable[[Any], Any]] = {
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
    "max_shard_bytes": _optional(_a(int)),
    "size": _optional(_a(int)),
    "mean": _each(_a(float)),
    "std": _each(_a(float)),
    "shards": _each(lambda content: _parse(Shard, _SHARD_FIELDS, content)),
    "keys": lambda content: {_a(str)(key): _a(str)(value) for key, value in _a(dict)(content).items()},
    "quarantine": _each(lambda content: _parse(Quarantined, _QUARANTINED_FIELDS, content)),
    _COUNTS: lambda content: {_a(str)(name): _a(int)(count) for name, count in _a(dict)(content).items()},
    "format_version": _a(int),
}
