"""Sets of shards made of a set: some of its images, for the checks; or all in other classes, for a sweep."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fdt_pipeline.shards import Manifest, read_manifest, write_shards
from fdt_pipeline.shards.conversion import OneShard, OneShardOfFiles, ShardSource
from fdt_pipeline.sources import ArraySource, Sample, Source
from fdt_pipeline.storage import open_folder

from .task import Task

I64 = npt.NDArray[np.int64]
OPEN = 64  # files at a time
SAMPLES, PER_CLASS = 2000, 5  # a check takes at least 2,000 of the set's own images, and 5 of each class
CODES, PER_CODE = 10, 24
STEP = 20  # grey levels between two codes: JPEG moves a flat colour by 2 at most
FACTORS = (1, 3, 7)  # a channel's levels are the classes' numbers times this, modulo CODES


class SomeOfShards:
    """Samples of a set as a source: all of them, or some, or with other labels. Each is read when it is asked for."""

    def __init__(self, shards: Path, manifest: Manifest) -> None:
        self._source = ShardSource(open_folder(shards), manifest)
        self.kind, self.split, self.classes = manifest.kind, manifest.split, manifest.classes
        self.shape, self.channels = manifest.shape, manifest.channels
        self.labels: I64 = self._source.labels
        self._positions = np.arange(len(self.labels))
        self._open: dict[int, OneShard] = {}
        if manifest.encoding != "raw":
            self.read_file = self._read_file

    def only(self, positions: I64) -> SomeOfShards:
        some = copy.copy(self)
        some.labels, some._positions, some._open = self.labels[positions], self._positions[positions], {}
        if hasattr(self, "read_file"):
            some.read_file = some._read_file
        return some

    def relabelled(self, labels: I64, classes: Sequence[str]) -> SomeOfShards:
        """All samples with other labels, i64[n]."""
        other = self.only(np.arange(len(self)))
        other.labels, other.classes = labels, tuple(classes)
        return other

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        shard, place = self._where(index)
        return Sample(shard[place].image, int(self.labels[index]), self.key(index))

    def key(self, index: int) -> str:
        return str(self._positions[index])

    def _read_file(self, index: int) -> bytes:
        shard, place = self._where(index)
        assert isinstance(shard, OneShardOfFiles)
        return shard.read_file(place)

    def _where(self, index: int) -> tuple[OneShard, int]:
        position = int(self._positions[index])
        number = int(np.searchsorted(self._source.bounds, position, "right")) - 1
        if number not in self._open:
            if len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = self._source.shard(number)
        return self._open[number], position - int(self._source.bounds[number])

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def relabelled(shards: Path, num_classes: int, work: Path) -> Path:
    """A folder of shards in which image number i is of class i % num_classes; kept in `work`.

    ValueError where there are fewer images than classes.
    """
    manifest = read_manifest(shards)
    if manifest.num_samples < num_classes:
        raise ValueError(f"--classes {num_classes} needs as many images, got {manifest.num_samples}")
    labels = np.arange(manifest.num_samples) % num_classes
    with closing(SomeOfShards(shards, manifest).relabelled(labels, [str(c) for c in range(num_classes)])) as source:
        return _written(work / f"classes-{num_classes}", source, _kept(manifest), manifest.samples_per_shard)


@dataclass(frozen=True)
class CheckSets:
    """Folders of shards: some of the set's images, as many of each class as there are; flat images of CODES classes."""

    sample: Path
    coded: Path


def write_check_sets(task: Task) -> CheckSets:
    """Write them in `task.work`, unless they are there."""
    folder = task.work / "check"
    with closing(_sample(task)) as sample:
        sampled = _written(folder / "sample", sample, _kept(task.manifest), max(1, len(sample) // 4))
    encoding = "jpg" if task.manifest.encoding == "keep" else task.manifest.encoding
    return CheckSets(sampled, _written(folder / "coded", coded_source(task.shape), encoding, CODES * PER_CODE // 4))


def _written(folder: Path, source: Source, encoding: str, samples_per_shard: int) -> Path:
    if not (folder / "manifest.json").exists():
        write_shards(source, folder, encoding, samples_per_shard=samples_per_shard, overwrite=True)
    return folder


def _kept(manifest: Manifest) -> str:
    return "raw" if manifest.encoding == "raw" else "keep"


def _sample(task: Task) -> SomeOfShards:
    """Images from all over the set; as many of each class as there are."""
    source = SomeOfShards(task.shards, task.manifest)
    labels, num_classes = source.labels, task.num_classes
    each = max(1, min(len(labels), max(SAMPLES, PER_CLASS * num_classes)) // num_classes)
    chosen = []
    for label in range(num_classes):
        positions = np.flatnonzero(labels == label)
        chosen.append(positions[np.linspace(0, len(positions) - 1, min(each, len(positions))).astype(np.int64)])
    return source.only(np.sort(np.concatenate(chosen)))


def levels(num_channels: int) -> I64:
    """i64[CODES c], 0..255: the colour of each class. No two classes are alike in any channel."""
    codes = np.arange(CODES)
    return np.stack([STEP + STEP * (codes * factor % CODES) for factor in FACTORS[:num_channels]], axis=1)


def coded_source(shape: tuple[int, int, int]) -> ArraySource:
    """Flat images whose colour is that of their class. shape: (c, h, w)."""
    c, h, w = shape
    labels = np.arange(CODES * PER_CODE) % CODES
    colours = levels(c).astype(np.uint8)[labels]
    return ArraySource(np.broadcast_to(colours[:, None, None, :], (len(labels), h, w, c)), labels, kind="coded")
