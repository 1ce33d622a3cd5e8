"""The order of a streaming epoch: which rank reads which sample when.

The shards of an epoch come in a new order; that is the stream. Each rank has a contiguous part of it, and within that
sample j moves to place j + u B, u uniform on [0, 1) and B the length of the shuffle, so no more than B samples wait.
All of it is a function of (seed, epoch, B, rank, world size) and the manifest alone, so any window can be the first
one read.

An epoch may change its world size on the way. What a leg of it has left unread is known, again by computing the orders
of its ranks, and is shared out anew: every sample still appears once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fdt_pipeline.definition.philox import Stream, permutation, random_words
from fdt_pipeline.loader.options import check_at_least_one, check_count
from fdt_pipeline.shards import Manifest, Shard
from fdt_pipeline.sources.source import I64


@dataclass(frozen=True)
class Leg:
    """A part of an epoch that `world_size` ranks went through, `batches` of `batch_size` samples each, shuffled over
    `shuffle` samples."""

    world_size: int
    batch_size: int
    shuffle: int
    batches: int

    def __post_init__(self) -> None:
        check_at_least_one(world_size=self.world_size, batch_size=self.batch_size)
        for name in ("shuffle", "batches"):
            check_count(name, getattr(self, name), 0)


@dataclass(frozen=True)
class EpochOrder:
    """shards: their order; samples i64[n]: this rank's places in the stream, in the order that it reads them;
    first: the number of the first output that is made of them; every leg of an epoch has numbers of its own."""

    shards: tuple[Shard, ...]
    samples: I64
    first: int = 0


def epoch_order(
    manifest: Manifest,
    seed: int,
    epoch: int,
    shuffle: int,
    rank: int = 0,
    world_size: int = 1,
    legs: Sequence[Leg] = (),
) -> EpochOrder:
    """Of what the legs have left. shuffle: how far samples move; 0 is the order of the manifest."""
    shards = manifest.shards
    if shuffle:
        shards = tuple(shards[i] for i in permutation(seed, Stream.SHARD_ORDER, epoch, len(shards)))
    left = np.arange(manifest.num_samples)
    for number, leg in enumerate(legs):
        parts = (_part(left, each, leg.world_size) for each in range(leg.world_size))
        unread = [_shuffled(part, seed, epoch, number, leg.shuffle)[leg.batches * leg.batch_size :] for part in parts]
        left = np.sort(np.concatenate(unread))
    first = len(legs) * manifest.num_samples + len(left) * rank // world_size
    mine = _part(left, rank, world_size)
    return EpochOrder(shards, _shuffled(mine, seed, epoch, len(legs), shuffle), first)


def _part(places: I64, rank: int, world_size: int) -> I64:
    return places[len(places) * rank // world_size : len(places) * (rank + 1) // world_size]


def _shuffled(places: I64, seed: int, epoch: int, leg: int, shuffle: int) -> I64:
    if not shuffle:
        return places
    words = random_words(seed, Stream.READER, epoch, places, leg)[:, 0]
    return places[np.argsort(np.arange(len(places)) + shuffle * (words / 2.0**32), kind="stable")]
