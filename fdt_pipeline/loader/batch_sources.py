"""What `fdt_pipeline(...)` feeds its graph: callables of DALI's BatchInfo (epoch_idx, iteration), one batch a call.

A batch is a function of its epoch and its number alone, so DALI's checkpoints, which keep these two, resume exactly.
StopIteration ends an epoch; `reset` goes on with the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fdt_pipeline.loader.order import EpochOrder, epoch_order
from fdt_pipeline.loader.prefetch import Ahead
from fdt_pipeline.loader.ranks import Batching
from fdt_pipeline.loader.reading import Window, read_windows
from fdt_pipeline.shards import Manifest
from fdt_pipeline.shards.files import ShardFiles
from fdt_pipeline.sources.source import I64


class IdSource:
    """-> i64[n 2], the (epoch, index) of every output of a batch."""

    def __init__(self, batching: Batching, first_epoch: int, pool: object) -> None:
        self.batching, self.first_epoch = batching, first_epoch
        self.pool = pool  # kept here until the operator, which DALI makes when it builds, has found it

    def __call__(self, info: Any) -> I64:
        if info.iteration >= self.batching.num_batches:
            raise StopIteration
        numbers, _ = self.batching.numbers(info.iteration)
        return _ids(self.first_epoch + info.epoch_idx, numbers)


class WindowSource:
    """-> images as `Window` has them, labels i64[n 1] and (epoch, index) pairs i64[n 2] of a batch, the mix window.

    Up to `depth` windows are read ahead, on a thread that ends with the epoch, with this object, and before the
    interpreter does.
    """

    def __init__(
        self, files: ShardFiles, manifest: Manifest, seed: int, batching: Batching, first_epoch: int, depth: int
    ) -> None:
        self.files, self.manifest, self.seed, self.batching = files, manifest, seed, batching
        self.first_epoch, self.depth = first_epoch, depth
        self._windows: Iterator[Window] = iter(())
        self._next: tuple[int, int] | None = None  # epoch and number of the window that _windows gives next
        self._first = 0  # the index of this rank's first output of the epoch
        self._close: Callable[[], object] = lambda: None

    def __call__(self, info: Any) -> tuple[Any, I64, I64]:
        epoch, number = self.first_epoch + info.epoch_idx, info.iteration
        if number >= self.batching.num_batches:
            self._close()
            raise StopIteration
        if self._next != (epoch, number):  # a new epoch, or one that a checkpoint resumes
            self._open(epoch, number)
        self._next = None  # after an error it is opened again, as what has failed would seem to have ended
        window = next(self._windows)
        self._next = epoch, number + 1
        index = self._first + number * self.batching.batch_size + np.arange(len(window.labels))
        return window.images, window.labels, _ids(epoch, index)

    def _open(self, epoch: int, number: int) -> None:
        self._close()
        self.files.check_unchanged()
        order = self._order(epoch)
        windows = Ahead(read_windows(self.files, self.manifest, order, self.batching.batch_size, number), self.depth)
        self._windows, self._first = windows, order.first
        self._close = weakref.finalize(self, windows.close)

    def _order(self, epoch: int) -> EpochOrder:
        """Of this rank's samples. A last batch that has to be full begins with its own, and goes on with those just
        before them."""
        size, ranks = self.batching.batch_size, self.batching.ranks
        order = epoch_order(self.manifest, self.seed, epoch, size, ranks.rank, ranks.world_size)
        if self.batching.last_batch != "fill":
            return order
        missing = self.batching.num_batches * size - len(order.samples)
        return replace(order, samples=np.append(order.samples, np.resize(order.samples[-size:], missing)))


def _ids(epoch: int, index: I64) -> I64:
    return np.stack([np.full_like(index, epoch), index], axis=1)
