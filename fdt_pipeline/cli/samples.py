"""Some samples of a set of shards, read one by one through the indexes: a set may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np

from fdt_pipeline.shards import Manifest, ShardError
from fdt_pipeline.shards.conversion import OneShard, ShardSource
from fdt_pipeline.sources.source import I64, U8
from fdt_pipeline.storage import Folder


class Place(NamedTuple):
    """Sample `position` of shard `number`."""

    number: int
    position: int


class Samples:
    """Labels and images by their places. What cannot be read is a ShardError that names the shard."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder, self.manifest = folder, manifest
        self._shard = cache(ShardSource(folder, manifest).shard)

    def labels(self, number: int) -> I64:
        """The labels of shard `number`, i64[number of samples]."""
        with self._opened(number, "labels") as shard:
            return shard.labels

    def image(self, place: Place) -> U8:
        """u8[h w c]"""
        with closing(self._shard(place.number)) as shard:
            key = shard.key(place.position)
        with self._opened(place.number, f"sample {key}") as shard:
            return shard[place.position].image

    @contextmanager
    def _opened(self, number: int, what: str) -> Iterator[OneShard]:
        """A shard whose file is closed in the end; what: the part of it that is damaged if it cannot be read."""
        with closing(self._shard(number)) as shard:
            try:
                yield shard
            except ShardError:
                raise
            except (ValueError, KeyError) as error:
                place = self._folder.path(self.manifest.shards[number].name)
                raise ShardError(f"{place}: {what}: {error}; see fdt-pipeline verify") from None

    def pick(self, classes: Sequence[int], per_class: int, seed: int) -> dict[int, list[Place]]:
        """Class -> up to `per_class` places, from shards all over the set. Another seed gives other places.

        More shards are read only for classes that are too rare to be found in `per_class` of them.
        """
        dice = np.random.default_rng(seed)
        spread = self.spread_shards(per_class, seed)
        others = [int(number) for number in dice.permutation(len(self.manifest.shards)) if number not in spread]
        wanted = {label: min(per_class, self.manifest.samples_per_class[label]) for label in classes}
        found: dict[int, list[list[Place]]] = {label: [] for label in classes}
        for count, number in enumerate([*spread, *others]):
            if count >= len(spread) and all(sum(map(len, found[label])) >= wanted[label] for label in classes):
                break
            labels = self.labels(number)
            for label in classes:
                here = dice.permutation(np.flatnonzero(labels == label)).tolist()
                found[label].append([Place(number, position) for position in here])
        return {label: _in_turn(found[label])[:per_class] for label in classes}

    def spread_shards(self, most: int, seed: int) -> list[int]:
        """Up to `most` shards, as far from each other as they can be."""
        total = len(self.manifest.shards)
        count = min(most, total)
        return sorted({(seed + number * total // count) % total for number in range(count)})


def _in_turn(lists: Sequence[Sequence[Place]]) -> list[Place]:
    """The first of each list, then the second of each, and so on."""
    return [place for place in chain(*zip_longest(*lists)) if place is not None]
