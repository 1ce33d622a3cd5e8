"""Who makes which output: the ranks of a run, the batches of an epoch, and the order in which streaming reads the
shards.

Resident: global batch g of an epoch is outputs g B to (g + 1) B - 1, and rank r makes the r-th part of it.

Streaming: the shards of an epoch come in a new order; that is the stream. Each rank has a contiguous part of it, and
within that part sample j moves to place j + u B, u uniform on [0, 1) and B the length of the shuffle, so at most B
samples wait. All of it is a function of (seed, epoch, B, rank, world size) and the manifest alone, so any window can
be the first one that is read. An epoch may change its world size on the way. What a leg of it has left unread is
computed from the orders of its ranks and shared out among the new ranks, so every sample still appears once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from fdt_pipeline.definition.philox import Stream, permutation, random_words
from fdt_pipeline.loader.options import LastBatch, check_at_least_one, check_count
from fdt_pipeline.shards import Manifest, Shard
from fdt_pipeline.sources.source import I64


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    def share(self, count: int) -> tuple[int, int]:
        """begin, end of this rank's part of `count` things; the parts' sizes differ by one at most."""
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size


def find_ranks(rank: int | None, world_size: int | None) -> Ranks:
    """As given; else torch.distributed's, where it is initialized; else those of torchrun's environment; else one
    process, with a warning where another launcher says that there are several. ValueError for what cannot be."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size must be given together, got rank={rank} and world_size={world_size}")
    if rank is not None and world_size is not None:
        return _checked(rank, world_size, "")
    return _of_process_group() or _of_environment(os.environ)


def check_ranks(built_for: Ranks) -> None:
    """RuntimeError if torch.distributed, which may have begun since, has other ranks: each would see another's data."""
    now = _of_process_group() or built_for
    if now != built_for:
        raise RuntimeError(
            f"this loader or pipeline was built for rank {built_for.rank} of {built_for.world_size}, and "
            f"torch.distributed says rank {now.rank} of {now.world_size}: build it after init_process_group() (with "
            "Fabric after launch(), in Lightning in train_dataloader()), or pass rank and world_size"
        )


def _of_process_group() -> Ranks | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return None


# How launchers that set no RANK say how many processes there are, and which one this is.
_LAUNCHERS = {
    "SLURM": (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    "mpirun": (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    "mpiexec": (("PMI_SIZE",), "PMI_RANK"),  # of MPICH and Intel MPI
}


def _warn_of_launchers(environment: Mapping[str, str]) -> None:
    for launcher, (sizes, rank) in _LAUNCHERS.items():
        size = next((environment[name] for name in sizes if name in environment), "")
        if rank in environment and size.isdecimal() and int(size) > 1:
            warnings.warn(
                f"{launcher} says that there are {size} tasks, but neither torch.distributed nor RANK says which one "
                "this is, so each would see all of the data: build the loader after init_process_group(), or pass "
                f"rank=int(os.environ[{rank!r}]) and world_size={size} (rank=0 and world_size=1 if that is meant)",
                stacklevel=5,
            )
            return


def _of_environment(environment: Mapping[str, str]) -> Ranks:
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
    said = " and ".join(f"{name}={value}" for name, value in found.items())
    if found["WORLD_SIZE"] is None and found["RANK"] in (None, "0"):
        _warn_of_launchers(environment)
        return Ranks()
    if found["RANK"] is None and found["WORLD_SIZE"] == "1":
        return Ranks()
    advice = "the environment says {said}: torchrun sets both; or pass rank and world_size"
    try:
        return _checked(int(found["RANK"] or ""), int(found["WORLD_SIZE"] or ""), f"; {advice.format(said=said)}")
    except ValueError as error:
        if "must be" in str(error):
            raise
        raise ValueError(advice.format(said=said)) from None


def _checked(rank: int, world_size: int, said: str) -> Ranks:
    if not hasattr(rank, "__index__") or not hasattr(world_size, "__index__"):
        raise ValueError(f"rank and world_size must be whole numbers, got {rank!r} and {world_size!r}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} of {world_size}{said}")
    return Ranks(int(rank), int(world_size))


def local_world_size(world_size: int) -> int:
    """Ranks on this machine: what torchrun says, else all of them."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(said), world_size) if said.isdecimal() and int(said) else world_size


class Span(NamedTuple):
    """Outputs first, first + 1, .. of an epoch of `total`, `size` of them; those from `total` on are its first ones
    again."""

    first: int
    size: int
    total: int

    def id(self, epoch: int) -> tuple[int, int, int, int]:
        """(epoch, first, count, modulo), as the operators take it."""
        return epoch, self.first % self.total, self.size, self.total

    def numbers(self) -> I64:
        """i64[size]: each one's index in the epoch."""
        return np.arange(self.first, self.first + self.size) % self.total

    def weights(self) -> torch.Tensor:
        """f32[size]: 0 for those that only fill a batch up, else 1."""
        weights = torch.ones(self.size)
        weights[max(0, self.total - self.first) :] = 0
        return weights


@dataclass(frozen=True)
class Batching:
    """An epoch of `total` outputs, cut into global batches of `batch_size` a rank. Every rank has as many batches."""

    total: int
    batch_size: int
    last_batch: LastBatch
    ranks: Ranks

    def __post_init__(self) -> None:
        world_size = self.ranks.world_size
        if self.total < world_size:
            raise ValueError(f"{self.total} samples are too few for {world_size} ranks: each needs one at least")
        if not self.num_batches:
            raise ValueError(
                f'last_batch="drop" leaves no batch: {self.total} samples in batches of {self.global_batch_size}'
            )
        if self.last_batch == "partial" and 0 < self._rest < world_size:
            raise ValueError(
                f'last_batch="partial" leaves {self._rest} of {self.total} outputs for {world_size} ranks, so some '
                'would get none: pass last_batch="drop" or "fill" (with weights=True for exact metrics)'
            )

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.ranks.world_size

    @property
    def num_batches(self) -> int:
        whole = self.total // self.global_batch_size
        return whole if self.last_batch == "drop" or not self._rest else whole + 1

    @property
    def smallest_batch(self) -> int:
        """Outputs of the smallest batch of an epoch, of any rank."""
        is_partial = self.last_batch == "partial" and self._rest > 0
        return self._rest // self.ranks.world_size if is_partial else self.batch_size

    @property
    def _rest(self) -> int:
        """Outputs of the last batch, if it is not full; all ranks together."""
        return self.total % self.global_batch_size

    def is_filled(self, batch: int) -> bool:
        return self.last_batch == "fill" and (batch + 1) * self.global_batch_size > self.total

    def span(self, batch: int) -> Span:
        """This rank's part of a global batch, which is outputs batch * global_batch_size and on. Where it is filled up,
        the epoch's first outputs come again behind its last one."""
        first = batch * self.global_batch_size
        if self.is_filled(batch):
            return Span(first + self.ranks.rank * self.batch_size, self.batch_size, self.total)
        begin, end = self.ranks.share(min(self.global_batch_size, self.total - first))
        return Span(first + begin, end - begin, self.total)

    def groups(self, first: int, most: int) -> Iterator[list[Span]]:
        """The batches from `first` on, up to `most` of them together, all of one size, in groups as even as can be."""
        num_full = self.num_batches - (self.span(self.num_batches - 1).size < self.batch_size)
        num_groups = -(-max(0, num_full - first) // most)
        ends = [first + (num_full - first) * number // num_groups for number in range(1, num_groups + 1)]
        if num_full < self.num_batches:
            ends.append(self.num_batches)
        for begin, end in pairwise([first, *ends]):
            yield [self.span(batch) for batch in range(begin, end)]


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

    def of_batches(self, num_batches: int, batch_size: int, is_filled: bool) -> EpochOrder:
        """Of the samples of so many batches, and no more. is_filled: behind the last one come those of just before the
        last batch once more, so that that is full."""
        missing = max(0, num_batches * batch_size - len(self.samples)) if is_filled else 0
        samples = np.append(self.samples, np.resize(self.samples[-batch_size:], missing))
        return replace(self, samples=samples[: num_batches * batch_size])

    def bounds(self, begin: int, batch_size: int) -> list[tuple[int, int]]:
        """begin, end of each batch, from sample `begin` on."""
        end = len(self.samples)
        return [(at, min(at + batch_size, end)) for at in range(begin, end, batch_size)]


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
