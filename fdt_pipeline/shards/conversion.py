"""Write a set of shards again in another encoding: the same samples, keys and order, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from typing import BinaryIO

import numpy as np

from ..sources.source import I64, Sample
from ..storage import Folder, located, open_folder
from .codec import ShardingOptions
from .folder import Location, read_manifest
from .index import IndexColumns
from .manifest import Manifest, Shard, ShardError
from .plan import Plan
from .progress import Progress
from .reader import check_hashes
from .running import Engine, OnBad, RunOptions
from .stored import StoredForm
from .writer import write_plan


class ShardSource:
    """Samples in the order of the shards; `take` gives those of one shard. Keys are the shards' KEYs.

    Raw images are decoded when asked for; of other encodings `read_file` gives the stored file.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.kind, self.split, self.classes = manifest.kind, manifest.split, manifest.classes
        self.shape, self.channels = manifest.shape, manifest.channels
        self.bounds = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        self.identity = manifest.sha256

    @property
    def labels(self) -> I64:
        labels = []
        for number in range(len(self.manifest.shards)):
            with closing(self.shard(number)) as shard:
                labels.append(shard.labels)
        return np.concatenate(labels)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, index: int) -> Sample:
        number = int(np.searchsorted(self.bounds, index, "right")) - 1
        with closing(self.shard(number)) as shard:
            return shard[index - int(self.bounds[number])]

    def take(self, positions: I64) -> OneShard:
        """positions: all of one shard, in its order."""
        number = int(np.searchsorted(self.bounds, positions[0], "right")) - 1
        assert positions.tolist() == list(range(self.bounds[number], self.bounds[number + 1]))
        return self.shard(number)

    def shard(self, number: int) -> OneShard:
        return OneShard(self.folder, self.manifest, self.manifest.shards[number])


class OneShard:
    """The samples of one tar, read one by one through its index. Nothing is read before it is needed. To be closed."""

    def __init__(self, folder: Folder, manifest: Manifest, shard: Shard) -> None:
        self.folder, self.shard, self.form = folder, shard, StoredForm.of(manifest)
        self.has_final_keys = not manifest.in_place
        self.kind, self.split, self.classes = manifest.kind, manifest.split, manifest.classes
        self.shape, self.channels = manifest.shape, manifest.channels
        if manifest.encoding != "raw":
            self.read_file = self._read_image

    def __len__(self) -> int:
        return self.shard.num_samples

    def __getitem__(self, index: int) -> Sample:
        image = self.form.pixels(self._read_image(index), self._index.extensions[index])
        return Sample(image, int(self.labels[index]), self.key(index))

    @cached_property
    def labels(self) -> I64:
        places = zip(self._index.label_offsets.tolist(), self._index.label_sizes.tolist(), strict=True)
        return np.array([self.form.label(self._read(offset, size)) for offset, size in places], np.int64)

    def key(self, index: int) -> str:
        return self._index.key(index)

    def states(self, positions: Sequence[int]) -> list[str]:
        return [self.shard.sha256]

    def close(self) -> None:
        if "_file" in vars(self):
            self._file.close()
            del self._file

    def __getstate__(self) -> dict[str, object]:
        """Without what was read and opened, so that it can be sent to another process."""
        return {name: value for name, value in vars(self).items() if name not in ("_index", "_file", "labels")}

    @cached_property
    def _index(self) -> IndexColumns:
        """ShardError if the index is missing, broken, or that of another tar."""
        name = self.shard.index_name
        try:
            return self.form.columns(self.folder.read(name), self.shard)
        except (FileNotFoundError, ValueError) as error:
            raise ShardError(f"{self.folder.path(name)}: {error}; fix it with fdt-pipeline index") from None

    @cached_property
    def _file(self) -> BinaryIO:
        folder, name = located(self.folder, self.shard.name)
        try:
            return folder.open(name)
        except FileNotFoundError:
            raise ShardError(f"{folder.path(name)}: missing; see fdt-pipeline verify") from None

    def _read_image(self, index: int) -> bytes:
        return self._read(int(self._index.image_offsets[index]), int(self._index.image_sizes[index]))

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ShardError(f"{self.folder.url}: {self.shard.name}: cut at byte {offset + len(data)}")
        return data


def convert_shards(
    location: Location,
    out: Location,
    encoding: str,
    *,
    size: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_bad: OnBad = "stop",
    workers: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> Manifest:
    """The set at `location` in another encoding, in the folder `out`; options as for `write_shards`.

    Where nothing is lost (raw, png, webp, without size) converting back gives the first set's bytes again. ShardError
    if the set is damaged: its hashes are checked first.
    """
    run = RunOptions(overwrite, resume, on_bad, workers, engine, progress)
    folder = open_folder(location)
    manifest = read_manifest(folder)
    if open_folder(out).url == folder.url:
        raise ValueError(f"{folder.url}: cannot be converted in place: choose another folder")
    if encoding == "keep" and manifest.encoding == "raw":
        encoding = "raw"  # there are no files to keep
    options = ShardingOptions(
        encoding, size or manifest.size, manifest.samples_per_shard, manifest.max_shard_bytes, manifest.seed
    )
    check_hashes(folder, manifest, workers)
    source = ShardSource(folder, manifest)
    plan = Plan(source, options, np.arange(len(source)), tuple(source.bounds[1:].tolist()), converted=manifest)
    return write_plan(plan, open_folder(out), run)
