"""Some samples of a set, read one by one through the indexes: a set may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fdt_pipeline.shards import Manifest, Shard, ShardError
from fdt_pipeline.shards.codec import decode, parse_label
from fdt_pipeline.shards.conversion import read_index
from fdt_pipeline.shards.index import Member
from fdt_pipeline.sources.source import I64, U8
from fdt_pipeline.storage import Folder


class Place(NamedTuple):
    """Sample `position` of shard `number`."""

    number: int
    position: int


def pick_places(
    folder: Folder, manifest: Manifest, labels: Sequence[int], per_class: int, seed: int
) -> dict[int, list[Place]]:
    """Label -> up to per_class samples of it, spread evenly over the shards as far as it goes; another seed, others."""
    missing = {label: min(per_class, manifest.samples_per_class[label]) for label in labels}
    places: dict[int, list[Place]] = {label: [] for label in labels}
    dice = np.random.default_rng(seed)
    spread = spread_shards(manifest, per_class, seed)
    share = -(-per_class // len(spread))
    for number, most in [*((number, share) for number in spread), *_all_shards(manifest, per_class, dice)]:
        if not any(missing.values()):
            break
        found = read_labels(folder, manifest.shards[number])
        for label in labels:
            here = [Place(number, int(at)) for at in dice.permutation(np.flatnonzero(found == label))]
            new = [place for place in here if place not in places[label]][: min(most, missing[label])]
            places[label] += new
            missing[label] -= len(new)
    return places


def spread_shards(manifest: Manifest, most: int, seed: int) -> list[int]:
    """Up to `most` shards, as far from each other as they can be."""
    total = len(manifest.shards)
    count = min(most, total)
    return sorted({(seed + at * total // count) % total for at in range(count)})


def _all_shards(manifest: Manifest, most: int, dice: np.random.Generator) -> Iterator[tuple[int, int]]:
    """For the classes that are too rare to be found in some."""
    return ((int(number), most) for number in dice.permutation(len(manifest.shards)))


def read_labels(folder: Folder, shard: Shard) -> I64:
    """i64[number of samples]."""
    samples = read_index(folder, shard)
    with folder.open(shard.name) as file:
        try:
            labels = []
            for members in samples:
                file.seek(members[-1].offset)
                labels.append(parse_label(file.read(members[-1].size)))
        except ValueError as error:
            raise _damaged(folder, shard, members[0], error) from None
    return np.array(labels, np.int64)


def read_images(folder: Folder, manifest: Manifest, places: Sequence[Place]) -> Iterator[tuple[Place, U8]]:
    """(place, u8[h w c]), one at a time, shard by shard."""
    for number in sorted({place.number for place in places}):
        shard = manifest.shards[number]
        samples = read_index(folder, shard)
        with folder.open(shard.name) as file:
            for place in places:
                if place.number == number:
                    member = samples[place.position][0]
                    file.seek(member.offset)
                    yield place, _decoded(folder, manifest, shard, member, file.read(member.size))


def _decoded(folder: Folder, manifest: Manifest, shard: Shard, member: Member, data: bytes) -> U8:
    try:
        return decode(data, member.extension, manifest.channels)
    except (ValueError, KeyError) as error:
        raise _damaged(folder, shard, member, error) from None


def _damaged(folder: Folder, shard: Shard, member: Member, error: Exception) -> ShardError:
    key = member.name.partition(".")[0]
    return ShardError(f"{folder.path(shard.name)}: sample {key}: {error}; see python -m tools verify")
