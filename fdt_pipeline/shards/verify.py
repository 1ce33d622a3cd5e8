"""Check all that can be known of a set of shards, and report every problem, not only the first."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import BinaryIO, NamedTuple, cast

from ..sources.image_pixels import quiet
from ..storage import Folder, located, open_folder
from .codec import EXTENSIONS, decode
from .folder import Location, foreign_files, read_manifest
from .foreign_tar import Hashed, read_foreign_tar
from .index import Member, index_text, parse_label
from .labels import ClassNumbers, label_field
from .manifest import Manifest, Shard, ShardError
from .pixel_statistics import PixelStatistics
from .progress import Progress
from .tar import BLOCK, member_size, sample_checksum, tar_entries, unpack_checksums

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_%-]+\.[a-z]+")  # unpacked by any program, it leads nowhere else
# Encoders that lose something may decode to other values elsewhere, by 1 of 255 at a pixel (another IDCT).
_LOSSY_TOLERANCE = 0.5
_BLOCK = 1 << 20


def verify_shards(location: Location, progress: Progress | None = None, decode: bool = False) -> list[str]:
    """One line a problem, naming shard and key; empty if all is well. ValueError if no shards are there.

    Checked: sizes and sha256 of tars and indexes, and a checksum of every sample; missing and extra files; that each
    index is that of its tar; that keys are contiguous and unique; labels and counts. Raw images, and with `decode` all
    of them, are decoded too, and their shapes, mean and std compared. One sample is in memory at a time.
    """
    folder = open_folder(location)
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        return [str(error)]
    return list(_Verification(folder, manifest, decode or manifest.encoding == "raw").problems(progress))


class Contents(NamedTuple):
    """A sample as it lies in a tar."""

    key: str
    members: list[Member]
    data: list[bytes]


def tar_samples(tar: BinaryIO, num_bytes: int) -> Iterator[Contents]:
    """The samples by the tar alone: neighbours whose key is the same are one sample."""
    for key, group in groupby(_contents(tar, num_bytes), key=lambda content: content[0].name.partition(".")[0]):
        members, data = zip(*group, strict=True)
        yield Contents(key, list(members), list(data))


def _contents(tar: BinaryIO, num_bytes: int) -> Iterator[tuple[Member, bytes]]:
    for entry in tar_entries(tar, num_bytes):
        name = entry.name.decode("ascii", "backslashreplace")
        data = tar.read(member_size(entry.size) - BLOCK)[: entry.size]  # with what fills its last block
        yield Member(name.partition(".")[2], entry.offset, entry.size, name), data


class _Verification:
    """What is gathered over all shards of a set."""

    def __init__(self, folder: Folder, manifest: Manifest, decode: bool) -> None:
        self.folder, self.manifest, self.decode = folder, manifest, decode
        self.keys: set[str] = set()
        self.labels: Counter[int] = Counter()
        self.extensions: Counter[str] = Counter()
        self.statistics = PixelStatistics()
        self.num_fine = 0

    def problems(self, progress: Progress | None) -> Iterator[str]:
        done = 0
        for name in foreign_files(self.folder, self.manifest):
            yield f"{self.folder.path(name)}: not in the manifest; move it elsewhere or remove it"
        for shard in self.manifest.shards:
            yield from self._of_shard(shard)
            done += shard.num_samples
            if progress:
                progress(done, self.manifest.num_samples)
        yield from self._of_totals()

    def _of_shard(self, shard: Shard) -> Iterator[str]:
        there, name = located(self.folder, shard.name)
        path, index_path = there.path(name), self.folder.path(shard.index_name)
        index: bytes | None = None
        try:
            index = self.folder.read(shard.index_name)
            got = hashlib.sha256(index).hexdigest()
            if got != shard.index_sha256:
                yield f"{index_path}: damaged: expected sha256 {shard.index_sha256}, got {got}"
        except FileNotFoundError:
            yield f"{index_path}: missing"
        size = there.size(name)
        if size is None:
            yield f"{path}: missing"
            return
        if size != shard.num_bytes:
            yield f"{path}: expected {shard.num_bytes} bytes, got {size}"
        with there.open(name) as file:
            if self.manifest.in_place:
                yield from self._of_foreign_tar(shard, path, size, file)
            else:
                yield from self._of_tar(shard, size, file, index)

    def _of_tar(self, shard: Shard, size: int, file: BinaryIO, index: bytes | None) -> Iterator[str]:
        path, tar = self.folder.path(shard.name), Hashed(file)
        samples: list[list[Member]] = []
        checksums = unpack_checksums(shard.crc32)
        broken = False
        try:
            for sample in tar_samples(cast(BinaryIO, tar), size):
                samples.append(sample.members)
                expected = checksums[len(samples) - 1] if len(samples) <= len(checksums) else None
                yield from (f"{path}: sample {sample.key}: {fault}" for fault in self._of_sample(sample, expected))
        except ValueError as error:
            broken = True
            yield f"{path}: not a readable tar: {error}"
        if (got := tar.sha256()) != shard.sha256:
            yield f"{path}: damaged: expected sha256 {shard.sha256}, got {got}"
        if len(samples) != shard.num_samples:
            yield f"{path}: expected {shard.num_samples} samples, got {len(samples)}"
        if index is not None and not broken and index != index_text(samples).encode("ascii"):
            yield f"{self.folder.path(shard.index_name)}: does not say where the samples of {shard.name} are"

    def _of_foreign_tar(self, shard: Shard, path: str, size: int, file: BinaryIO) -> Iterator[str]:
        """Read as when it was indexed, it must give the same again; what was left out then is not looked at."""
        known = {bad.position for bad in self.manifest.quarantine if bad.key.startswith(f"{shard.name}: ")}
        try:
            with quiet():
                tar = read_foreign_tar(file, size, label_field(self.manifest.labels), self.decode, known)
        except ValueError as error:
            yield f"{path}: {error}"
            return
        if tar.sha256 != shard.sha256:
            yield f"{path}: damaged: expected sha256 {shard.sha256}, got {tar.sha256}"
        for number, key, reason in tar.left_out:
            if number not in known:
                yield f"{path}: sample {key}: {reason}"
        if hashlib.sha256(tar.index).hexdigest() == shard.index_sha256:
            for key, got, expected in zip(tar.keys, tar.checksums, unpack_checksums(shard.crc32), strict=True):
                if got != expected:
                    yield f"{path}: sample {key}: its bytes are not those that were indexed (CRC-32)"
        elif len(tar.left_out) == len(known):
            yield f"{path}: its samples are not where its index says"
        class_number = ClassNumbers(self.manifest.classes)
        for key, label in zip(tar.keys, tar.labels, strict=True):
            try:
                self.labels[class_number(label)] += 1
            except ValueError as error:
                yield f"{path}: sample {key}: {error}"
        self.extensions += tar.extensions
        self.num_fine += len(tar.keys) if self.decode else 0
        if self.decode and tar.keys:
            self.statistics.add(tar.pixel_counts(self.manifest.channels))

    def _of_sample(self, sample: Contents, checksum: int | None) -> Iterator[str]:
        for member in sample.members:
            if not _PLAIN_NAME.fullmatch(member.name):
                yield f"its member is called {member.name!r}: expected letters, digits, _, - and % and an extension"
        if sample.key in self.keys:
            yield "the key occurs twice: keys must be unique, and the members of a sample lie side by side"
        self.keys.add(sample.key)
        if checksum is not None and checksum != sample_checksum(sample.data):
            yield "its bytes are not those that were written (CRC-32)"
        try:
            label = _label(sample, EXTENSIONS[self.manifest.encoding])
        except ValueError as error:
            yield str(error)
            return
        if not 0 <= label < len(self.manifest.classes):
            yield f"label {label} is out of range: expected 0..{len(self.manifest.classes) - 1}"
        self.labels[label] += 1
        self.extensions[sample.members[0].extension] += 1
        if self.decode:
            yield from self._of_image(sample)

    def _of_image(self, sample: Contents) -> Iterator[str]:
        try:
            image = decode(sample.data[0], sample.members[0].extension, self.manifest.channels)
        except ValueError as error:
            yield str(error)
            return
        expected = self.manifest.shape or (*image.shape[:2], self.manifest.channels)
        if image.shape != expected:
            yield f"expected an image of shape {list(expected)}, got {list(image.shape)}"
            return
        self.num_fine += 1
        self.statistics.add(image)

    def _of_totals(self) -> Iterator[str]:
        manifest, where = self.manifest, self.folder.url
        for label, (name, expected) in enumerate(zip(manifest.classes, manifest.samples_per_class, strict=True)):
            if self.labels[label] != expected:
                yield f"{where}: class {label} ({name}): expected {expected} samples, got {self.labels[label]}"
        if manifest.samples_per_extension != self.extensions:
            yield f"{where}: expected images stored as {manifest.samples_per_extension}, got {dict(self.extensions)}"
        if self.num_fine != manifest.num_samples or manifest.mean is None or manifest.std is None:
            return  # mean and std can only be compared when every image could be decoded
        tolerance = _LOSSY_TOLERANCE if manifest.encoding in ("jpg", "keep") else 0
        expected_values, got = (*manifest.mean, *manifest.std), (*self.statistics.mean, *self.statistics.std)
        if any(abs(a - b) > tolerance for a, b in zip(expected_values, got, strict=True)):
            yield f"{where}: mean and std of the pixels are not those of the manifest"


def _label(sample: Contents, extensions: Sequence[str]) -> int:
    """ValueError unless it has an image of one of the extensions, and a label."""
    found = [member.extension for member in sample.members]
    if len(found) != 2 or found[0] not in extensions or found[1] != "cls":
        names = ", ".join(member.name for member in sample.members)
        raise ValueError(f"expected the members .{' or .'.join(extensions)} and .cls, got {names}")
    return parse_label(sample.data[1])
