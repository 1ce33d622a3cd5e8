"""manifest.json: what a set of shards holds. It is written last, so where it is, the set is whole. And `_info.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .codec import EXTENSIONS

FORMAT_VERSION = 2
SHA256_FIELD = "manifest_sha256"
TIMM_INFO_NAME = "_info.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ShardError(ValueError):
    """Shards are not what their manifest says. Names the shard, what was expected and what was found."""


@dataclass(frozen=True)
class Shard:
    """One tar, its size in bytes, the sha256 (hexadecimal) of it and of its index, and the checksums of its samples
    (`tar.pack_checksums`).

    A tar of another program stays where it is: name is then its path relative to the manifest, or absolute, or its URL
    (`storage.located`), and index the name of its index, which lies beside the manifest.
    """

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str
    crc32: str = field(repr=False)
    index: str = ""

    def __post_init__(self) -> None:
        for sha256 in (self.sha256, self.index_sha256):  # a file of the cache is called by it
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"{self.name}: a sha256 must be 64 digits 0..f, got {sha256[:80]!r}")
        if self.index and ("/" in self.index or not self.index.endswith(".idx")):  # it leads nowhere else
            raise ValueError(f"{self.name}: expected an index beside the manifest, got {self.index[:80]!r}")

    @property
    def index_name(self) -> str:
        return self.index or self.name.removesuffix(".tar") + ".idx"

    @property
    def files(self) -> dict[str, str]:
        """Name -> sha256 of the tar, and then of its index."""
        return {self.name: self.sha256, self.index_name: self.index_sha256}


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
    stored as what. Of tars that stay as they are (`in_place`): mean and std are None where no image was decoded, and
    labels says where their labels are (labels.py)."""

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
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    shards: tuple[Shard, ...]
    keys: dict[str, str]
    quarantine: tuple[Quarantined, ...]
    samples_per_extension: dict[str, int]
    format_version: int = FORMAT_VERSION
    labels: str = "cls"

    def __post_init__(self) -> None:
        of_classes, of_shards = sum(self.samples_per_class), sum(shard.num_samples for shard in self.shards)
        if not 1 <= self.num_samples == of_classes == of_shards:
            raise ValueError(
                f"num_samples is {self.num_samples}, but samples_per_class sum to {of_classes} and the shards to "
                f"{of_shards}"
            )
        if self.in_place:
            if not all(shard.index for shard in self.shards) or len(self.files) != 2 * len(self.shards):
                raise ValueError("expected an index for each shard, and all names to differ")
            return
        for index, shard in enumerate(self.shards):  # so no name leads out of the folder
            if shard.name != shard_name(index):
                raise ValueError(f"shards must be in order: expected {shard_name(index)}, got {shard.name}")

    @property
    def num_populated_classes(self) -> int:
        """How many of the classes have images."""
        return sum(map(bool, self.samples_per_class))

    @property
    def in_place(self) -> bool:
        """Whether the tars are another program's, which stay as they are."""
        return any(shard.index for shard in self.shards)

    @property
    def files(self) -> dict[str, str]:
        """Name -> sha256 of every tar and index."""
        return {name: sha256 for shard in self.shards for name, sha256 in shard.files.items()}

    def to_dict(self) -> dict[str, Any]:
        """All fields, without `samples_per_extension` where the encoding has one extension and without what only tars
        of other programs have, and last its sha256."""
        fields = dataclasses.asdict(self)
        if not self.in_place:
            del fields["labels"]
            for shard in fields["shards"]:
                del shard["index"]
        if len(EXTENSIONS[self.encoding]) == 1:
            del fields["samples_per_extension"]
        return {**fields, SHA256_FIELD: _hash_of(fields)}

    @property
    def sha256(self) -> str:
        return self.to_dict()[SHA256_FIELD]

    def to_json(self) -> str:
        """JSON without a time or a path: the same set has the same manifest."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _hash_of(fields: dict[str, Any]) -> str:
    """The sha256 of all fields, as JSON with sorted keys and without blanks."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def manifest_from_json(text: str) -> Manifest:
    """ValueError unless it is, byte for byte, what `to_json` wrote: for broken JSON, another format version, and any
    change, which the hash shows."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("expected a JSON object, got one nested without end") from None
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"expected format_version {FORMAT_VERSION}, got {content.get('format_version')!r}")
    sha256 = content.pop(SHA256_FIELD, None)
    if sha256 != _hash_of(content):
        raise ValueError(f"was changed by hand or damaged: expected {SHA256_FIELD} {_hash_of(content)}, got {sha256!r}")
    manifest = _manifest_of(content)
    if text != manifest.to_json():
        raise ValueError("was changed by hand or damaged after it was written")
    return manifest


def _manifest_of(content: dict[str, Any]) -> Manifest:
    """ValueError if another program wrote it, with other fields."""
    try:
        extensions = EXTENSIONS[content["encoding"]]
        if len(extensions) == 1:
            content = {"samples_per_extension": {extensions[0]: content["num_samples"]}, **content}
        content = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        content["quarantine"] = tuple(Quarantined(**bad) for bad in content["quarantine"])
        return Manifest(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"has other fields than a manifest: {type(error).__name__}: {error}") from None


def timm_info(sets: Mapping[str, Manifest]) -> dict[str, Any]:
    """The `_info.json` by which timm's webdataset reader knows a set: its splits, their tars and their lengths.

        timm.data.create_dataset("wds/photos", root="runs/photos", split="train", is_training=True, batch_size=64)

    sets: folder -> manifest, as seen from the folder of `_info.json`; "" is that folder itself.

    ValueError for raw shards, which hold arrays: timm leaves every sample of them out with a warning; and for two sets
    of one split.
    """
    splits: dict[str, dict[str, Any]] = {}
    for folder, manifest in sets.items():
        name = manifest.split or folder.rpartition("/")[2] or "train"  # a set without splits is the one to train on
        if manifest.encoding == "raw":
            raise ValueError(f"{folder or 'the set'}: timm reads jpg, png and webp, not raw: convert it to one of them")
        if name in splits:
            raise ValueError(f"{folder}: is a second set of the split {name!r}: expected one folder a split")
        splits[name] = {
            "name": name,
            "num_samples": manifest.num_samples,
            "filenames": [f"{folder}/{shard.name}".lstrip("/") for shard in manifest.shards],
            "shard_lengths": [shard.num_samples for shard in manifest.shards],
        }
    return {"splits": splits}


def timm_info_json(sets: Mapping[str, Manifest]) -> str:
    return json.dumps(timm_info(sets), indent=2) + "\n"
