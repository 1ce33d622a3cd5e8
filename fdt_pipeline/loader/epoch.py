"""One epoch of outputs, from a data set in memory or from the shards.

Each epoch runs a DALI pipeline of its own and closes it at its end, so breaking off leaves nothing behind that a later
epoch could see (25 ms until the first batch with DALI 1.34, 31 with 2.4: README.md).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from fdt_pipeline.loader.bad_samples import find_bad
from fdt_pipeline.loader.checkpoint import Cursor
from fdt_pipeline.loader.engines import IdBatch, ResidentEngine, StreamingEngine, WindowBatch
from fdt_pipeline.loader.graphs import Decoding
from fdt_pipeline.loader.order import Batching, EpochOrder, Leg, epoch_order
from fdt_pipeline.loader.prefetch import prefetched
from fdt_pipeline.loader.reading import Window, read_windows
from fdt_pipeline.loader.running import DaliError
from fdt_pipeline.loader.stats import ClassWatch, StatsCounter
from fdt_pipeline.shards import Manifest
from fdt_pipeline.shards.files import ShardFiles
from fdt_pipeline.sources.source import I64


class Part(NamedTuple):
    """Outputs of this rank; weights f32[n]: 0 for those that stand for no sample, else 1."""

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def rows(self, begin: int, end: int | None = None) -> Part:
        return Part(*(field[begin:end] for field in self))


class ResidentEpochs:
    """Outputs drawn from a set in memory."""

    def __init__(self, engine: ResidentEngine, batching: Batching) -> None:
        self.engine, self.batching = engine, batching

    def leg(self) -> None:
        """Global batches do not depend on the number of ranks, so there are no legs."""

    def batches(self, cursor: Cursor, stats: StatsCounter) -> Generator[Part, None, None]:
        """From the cursor on, to the end of its epoch."""
        num_batches = self.batching.num_batches - cursor.batch
        if num_batches <= 0:
            return
        with closing(self.engine.run(self._ids(cursor), num_batches, cursor.mixing)) as outputs:
            for batch, images, targets in outputs:
                yield Part(images, targets, batch.weights)

    def _ids(self, cursor: Cursor) -> Generator[IdBatch, None, None]:
        for batch in range(cursor.batch, self.batching.num_batches):
            index, weights = self.batching.numbers(batch)
            yield IdBatch(ids_of(cursor.epoch, index), torch.from_numpy(weights).float())


class StreamingEpochs:
    """Outputs of the samples of the shards; shuffled and mixed within a window."""

    def __init__(
        self,
        engine: StreamingEngine,
        files: ShardFiles,
        manifest: Manifest,
        batching: Batching,
        decoding: Decoding,
        window: int,
        seed: int,
        *,
        train: bool,
        substitute: bool,
        prefetch: int,
        watch: ClassWatch | None,
    ) -> None:
        self.engine, self.files, self.manifest, self.batching = engine, files, manifest, batching
        self.decoding, self.window, self.seed, self.prefetch = decoding, window, seed, prefetch
        self.train, self.substitute, self.watch = train, substitute, watch
        self.known_bad: dict[tuple[str, int], str] = {}

    def leg(self) -> Leg:
        """What the epochs of this loader are, as a leg; no batches of it yet."""
        shuffle = self.window if self.train else 0
        return Leg(self.batching.ranks.world_size, self.batching.batch_size, shuffle, 0)

    def batches(self, cursor: Cursor, stats: StatsCounter) -> Generator[Part, None, None]:
        """Windows cut into batches; a batch that spans two windows is put together of both."""
        batching, size = self.batching, self.batching.batch_size
        if cursor.batch >= batching.num_batches:
            return
        # A last batch is filled up with the outputs of the one before.
        before = batching.is_filled(cursor.batch) and cursor.batch > cursor.batches_before
        begin = cursor.batch - before
        kept: list[Part] = []
        previous: Part | None = None
        with closing(self._parts(cursor, (begin - cursor.batches_before) * size, stats)) as parts:
            for batch in range(begin, batching.num_batches):
                num_new = batching.num_new(batch)
                while sum(len(part.weights) for part in kept) < num_new:
                    kept.append(next(parts))
                taken, kept = _split(kept, num_new)
                if batching.is_filled(batch):
                    had = [previous.rows(num_new)] if previous else taken or [next(parts)]
                    taken = [*taken, *_repeated(had, size - num_new)]
                part = _joined(taken)
                previous = part if batching.last_batch == "fill" else None
                if batch >= cursor.batch:
                    yield part

    def _parts(self, cursor: Cursor, position: int, stats: StatsCounter) -> Generator[Part, None, None]:
        """Windows of outputs, from the one that is number `position` of this rank and leg on."""
        self.files.check_unchanged()
        order = self._order(cursor)
        number, skipped = divmod(position, self.window)
        num_windows = -(-len(order.samples) // self.window)
        while number < num_windows:
            inputs = self._windows(order, cursor.epoch, number)
            try:
                with closing(self.engine.run(inputs, num_windows - number, cursor.mixing)) as outputs:
                    for batch, images, targets in outputs:
                        self._count(batch.window, cursor.mixing, stats)
                        yield Part(images, targets, self._weights(batch.window)).rows(skipped)
                        number, skipped = number + 1, 0
            except DaliError as error:
                self._remember_bad(error, f"window {number} of epoch {cursor.epoch}")  # and once more, without them
            finally:
                inputs.close()

    def _order(self, cursor: Cursor) -> EpochOrder:
        shuffle, ranks = self.leg().shuffle, self.batching.ranks
        order = epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, ranks.rank, ranks.world_size, cursor.legs)
        if not len(order.samples):  # of a last batch that is to be filled up: with those of another rank
            return epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, legs=cursor.legs)
        return order

    def _windows(self, order: EpochOrder, epoch: int, first: int) -> Generator[WindowBatch, None, None]:
        """From window number `first` on, read ahead on a thread."""
        known_bad = dict(self.known_bad)
        windows = read_windows(self.files, self.manifest, order, self.window, first, self.substitute, known_bad)
        index = order.first + first * self.window
        with closing(prefetched(windows, self.prefetch)) as ahead:  # closed, not dropped: as in engines.py
            for window in ahead:
                yield WindowBatch(window, ids_of(epoch, np.arange(index, index + len(window.labels))))
                index += len(window.labels)

    def _remember_bad(self, error: DaliError, where: str) -> None:
        """DALI loses a whole batch to one bad sample, and does not say which: it is looked for among those in flight.
        RuntimeError, naming what was found, unless bad samples are substituted."""
        windows = [batch.window for batch in error.inputs]
        named = [(window, find_bad(window, self.manifest, self.decoding)) for window in windows]
        found = [(window, i, reason) for window, reasons in named for i, reason in reasons.items()]
        if found and self.substitute:
            self.known_bad |= {window.identity(i): reason for window, i, reason in found}
            return
        url = self.files.folder.url
        names = "; ".join(f"{window.name(i)}: {reason}" for window, i, reason in found)
        raise RuntimeError(
            f"{where}: a sample of {url} could not be read or decoded: {error}; "
            f"{names or f'`fdt-pipeline verify --decode {url}` names shard and key'}"
        ) from error

    def _count(self, window: Window, mixing: bool, stats: StatsCounter) -> None:
        stats.add(windows=1)
        stats.add_bad(list(window.replaced.values()))
        if self.watch and mixing:
            self.watch.add(window.labels, stats)

    def _weights(self, window: Window) -> torch.Tensor:
        weights = torch.ones(len(window.labels))
        if window.replaced and not self.train:
            weights[list(window.replaced)] = 0
        return weights


def ids_of(epoch: int, index: I64) -> I64:
    """i64[n] -> i64[n 2]: the (epoch, index) of each output."""
    return np.stack([np.full_like(index, epoch), index], axis=1)


def _split(parts: list[Part], size: int) -> tuple[list[Part], list[Part]]:
    """The first `size` outputs of consecutive parts, and what is left of the parts."""
    taken: list[Part] = []
    while parts and size:
        part, *parts = parts
        taken.append(part.rows(0, size))
        if len(part.weights) > size:
            parts = [part.rows(size), *parts]
        size -= len(taken[-1].weights)
    return taken, parts


def _repeated(parts: list[Part], size: int) -> list[Part]:
    """So many outputs of these, again and again, with weight 0."""
    repeated: list[Part] = []
    while size:
        taken, _ = _split(parts, size)
        repeated += [part._replace(weights=torch.zeros_like(part.weights)) for part in taken]
        size -= sum(len(part.weights) for part in taken)
    return repeated


def _joined(parts: list[Part]) -> Part:
    return parts[0] if len(parts) == 1 else Part(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
