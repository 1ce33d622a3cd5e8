"""Some of a set's samples, or all with other labels, as a source: to write them as shards again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fdt_pipeline.shards import Manifest
from fdt_pipeline.shards.conversion import OneShard, OneShardOfFiles, ShardSource
from fdt_pipeline.sources import Sample
from fdt_pipeline.storage import Folder

I64 = npt.NDArray[np.int64]
OPEN = 64  # files at a time


class SomeOfShards:
    """Samples in the order of the shards. Every one is read when it is asked for, in any order."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._source = ShardSource(folder, manifest)
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
        """labels i64[n], of all samples."""
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
