"""Check all that can be known of a set of shards, and report every problem, not only the first."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import groupby
from pathlib import Path

from .errors import ShardError
from .folder import foreign_files, read_manifest
from .index import Member, index_text
from .manifest import Manifest, Shard
from .progress import Progress
from .reader import check_sha256, parse_sample
from .statistics import PixelStatistics


def verify_shards(folder: str | Path, progress: Progress | None = None) -> list[str]:
    """One line a problem, naming shard and key; empty if all is well. ValueError if no shards are there.

    Checked: sizes and sha256 of tars and indexes; missing and extra files; that each index is that of its tar; that
    keys are contiguous and unique; that every image decodes and has the stated shape; labels, counts, mean and std.
    """
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        return [str(error)]
    return list(_Verification(Path(folder), manifest).problems(progress))


def tar_samples(tar: bytes) -> list[list[Member]]:
    """The members as the tar itself tells them, grouped by key while the key stays the same."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as file:
        members = [Member(info.name.partition(".")[2], info.offset_data, info.size, info.name) for info in file]
    return [list(group) for _, group in groupby(members, key=_key)]


def _bytes(path: Path, sha256: str) -> Generator[str, None, bytes | None]:
    """Yields what is wrong with the file, returns its bytes all the same."""
    if not path.is_file():
        yield f"{path}: missing"
        return None
    data = path.read_bytes()
    try:
        check_sha256(path, data, sha256)
    except ShardError as error:
        yield str(error)
    return data


def _key(member: Member) -> str:
    return member.name.partition(".")[0]


class _Verification:
    """What is gathered over all shards of a set."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.keys: set[str] = set()
        self.labels: Counter[int] = Counter()
        self.statistics = PixelStatistics()

    def problems(self, progress: Progress | None) -> Iterator[str]:
        foreign = foreign_files(self.folder, self.manifest)
        yield from (f"{path}: not in the manifest; move it elsewhere or remove it" for path in foreign)
        for done, shard in enumerate(self.manifest.shards, 1):
            yield from self._of_shard(shard)
            if progress:
                progress(done, len(self.manifest.shards))
        yield from self._of_totals()

    def _of_shard(self, shard: Shard) -> Iterator[str]:
        path = self.folder / shard.name
        index = yield from _bytes(path.with_suffix(".idx"), shard.index_sha256)
        tar = yield from _bytes(path, shard.sha256)
        if tar is None:
            return
        if len(tar) != shard.num_bytes:
            yield f"{path}: expected {shard.num_bytes} bytes, got {len(tar)}"
        try:
            samples = tar_samples(tar)
        except (tarfile.TarError, ValueError) as error:
            yield f"{path}: not a readable tar: {error}"
            return
        if len(samples) != shard.num_samples:
            yield f"{path}: expected {shard.num_samples} samples, got {len(samples)}"
        if index is not None and index != index_text(samples).encode("utf-8", "surrogateescape"):
            yield f"{path.with_suffix('.idx')}: does not say where the samples of {shard.name} are"
        for members in samples:
            for problem in self._of_sample(memoryview(tar), members):
                yield f"{path}: sample {_key(members[0])}: {problem}"

    def _of_sample(self, tar: memoryview, members: list[Member]) -> Iterator[str]:
        key = _key(members[0])
        if key in self.keys:
            yield "the key occurs twice: keys must be unique, and the members of a sample lie side by side"
        self.keys.add(key)
        try:
            image, label = parse_sample(tar, members, self.manifest.encoding)
        except ValueError as error:
            yield str(error)
            return
        if not 0 <= label < len(self.manifest.classes):
            yield f"label {label} is out of range: expected 0..{len(self.manifest.classes) - 1}"
        expected = self.manifest.shape or (*image.shape[:2], self.manifest.channels)
        if image.shape != expected:
            yield f"expected an image of shape {list(expected)}, got {list(image.shape)}"
            return
        self.labels[label] += 1
        self.statistics.add(image)

    def _of_totals(self) -> Iterator[str]:
        manifest, where = self.manifest, self.folder
        for label, (name, expected) in enumerate(zip(manifest.classes, manifest.samples_per_class, strict=True)):
            if self.labels[label] != expected:
                yield f"{where}: class {label} ({name}): expected {expected} samples, got {self.labels[label]}"
        if self.labels.total() != manifest.num_samples:
            return  # mean and std can only be compared when every sample could be read
        if (self.statistics.mean, self.statistics.std) != (manifest.mean, manifest.std):
            yield f"{where}: mean and std of the pixels are not those of the manifest"
