"""Which process of a distributed run this is, and how a batch is shared out among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fdt_pipeline.sources.source import I64

LastBatch = Literal["partial", "drop", "fill"]


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    def share(self, count: int) -> tuple[int, int]:
        """begin, end of this rank's part of `count` things; the parts' sizes differ by one at most."""
        return count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size


def find_ranks(rank: int | None, world_size: int | None) -> Ranks:
    """As given; else torch.distributed's, where it is initialized; else those of torchrun's environment; else one
    process. ValueError for what cannot be."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size must be given together, got rank={rank} and world_size={world_size}")
    if rank is not None and world_size is not None:
        return _checked(rank, world_size, "")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return _of_environment(os.environ)


def _of_environment(environment: Mapping[str, str]) -> Ranks:
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
    said = " and ".join(f"{name}={value}" for name, value in found.items())
    if found["WORLD_SIZE"] is None and found["RANK"] in (None, "0"):
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
    def _rest(self) -> int:
        """Outputs of the last batch, if it is not full; all ranks together."""
        return self.total % self.global_batch_size

    def num_new(self, batch: int) -> int:
        """This rank's outputs in this batch, without those that fill it up."""
        if (batch + 1) * self.global_batch_size <= self.total:
            return self.batch_size
        begin, end = self.ranks.share(self._rest)
        return end - begin

    def is_filled(self, batch: int) -> bool:
        return self.last_batch == "fill" and (batch + 1) * self.global_batch_size > self.total

    def numbers(self, batch: int) -> tuple[I64, I64]:
        """Of this rank's part of a global batch, which is outputs batch * global_batch_size and on: (numbers i64[n] in
        the epoch, weights i64[n]: 0 for those that fill it up, the epoch's first ones, else 1)."""
        first = batch * self.global_batch_size
        if self.is_filled(batch):
            numbers = first + self.ranks.rank * self.batch_size + np.arange(self.batch_size)
            return numbers % self.total, (numbers < self.total).astype(np.int64)
        size = min(self.global_batch_size, self.total - first)
        begin, end = self.ranks.share(size)
        return np.arange(first + begin, first + end), np.ones(end - begin, np.int64)
