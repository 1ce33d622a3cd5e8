"""One epoch of outputs, from a data set in memory or from the shards.

A pipeline goes on over the epochs that follow each other. An epoch that is broken off closes it, so that nothing is
left which a later epoch could see (25 ms until the first batch of a new one with DALI 1.34, 31 with 2.4: README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from fdt_pipeline.loader.bad_samples import find_bad
from fdt_pipeline.loader.checkpoint import Cursor
from fdt_pipeline.loader.engines import Made, ResidentEngine, SpanBatch, StreamingEngine, WindowBatch, decoded
from fdt_pipeline.loader.graphs import Decoding
from fdt_pipeline.loader.order import Batching, EpochOrder, Leg, epoch_order
from fdt_pipeline.loader.prefetch import prefetched
from fdt_pipeline.loader.reading import KnownBad, Window, read_windows
from fdt_pipeline.loader.running import Copy, DaliError, DaliOptions
from fdt_pipeline.loader.stats import ClassWatch, StatsCounter
from fdt_pipeline.shards import Manifest
from fdt_pipeline.shards.files import CachedShardFiles, ShardFiles


class Part(NamedTuple):
    """Outputs of this rank; weights f32[n]: 0 for those that stand for no sample, else 1; copy: on a GPU."""

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    copy: Copy | None = None

    def rows(self, begin: int, end: int | None = None) -> Part:
        those = slice(begin, end)
        return Part(self.images[those], self.targets[those], self.weights[those], self.copy)

    def handed_over(self) -> Part:
        """The same, to work on in torch's current stream."""
        if self.copy is not None:
            self.copy.hand_over(self.images, self.targets)
        return self


Parts = Generator[Part, None, None]


class EpochChain:
    """Parts of one epoch after the other, out of one DALI pipeline.

    An epoch that begins where the one before has ended goes on with the same pipeline, which has worked ahead by then.
    Any other one, and one behind an epoch that was broken off, gets a pipeline of its own, as does every one where the
    chain does not go on.
    """

    def __init__(self, goes_on: bool = True) -> None:
        self.goes_on = goes_on
        self._kept: tuple[Cursor, Parts] | None = None

    @contextmanager
    def epoch(self, make: Callable[[Cursor], Parts], cursor: Cursor) -> Iterator[Parts]:
        """What is left of an epoch, and where the chain goes on, all epochs behind it. make: cursor -> these parts."""
        foreseen, parts = self._kept or (None, None)
        self._kept = None
        if parts is not None and foreseen != cursor:
            parts.close()
        if parts is None or foreseen != cursor:
            parts = make(cursor)
        try:
            yield parts
        finally:
            if self._kept is None or self._kept[1] is not parts:  # closed, not dropped: as in engines.py
                parts.close()

    def keep(self, cursor: Cursor, parts: Parts) -> None:
        """The parts of this epoch are out: what is left is for the next. Said before the last of them is handed out, as
        a consumer may never ask for the end."""
        self.close()
        if self.goes_on:
            self._kept = following(cursor), parts

    def close(self) -> None:
        """End the pipeline that waits for the next epoch."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()


def following(cursor: Cursor) -> Cursor:
    """The beginning of the next epoch."""
    return Cursor(cursor.epoch + 1, mixing=cursor.mixing)


def cursors(cursor: Cursor) -> Iterator[Cursor]:
    """This one, and the beginnings of all epochs behind it."""
    while cursor.epoch < 2**32:
        yield cursor
        cursor = following(cursor)


class ResidentEpochs:
    """Outputs drawn from a set in memory. most_batches: that the engine makes together."""

    def __init__(self, engine: ResidentEngine, batching: Batching, most_batches: int) -> None:
        self.engine, self.batching, self.most_batches = engine, batching, most_batches
        self.chain = EpochChain()

    def leg(self) -> None:
        """Global batches do not depend on the number of ranks, so there are no legs."""

    def batches(self, cursor: Cursor) -> Generator[Part, None, None]:
        """From the cursor on, to the end of its epoch."""
        if cursor.batch >= self.batching.num_batches:
            return
        with self.chain.epoch(self._parts, cursor) as parts:
            for batch in range(cursor.batch, self.batching.num_batches):
                part = next(parts)
                if batch == self.batching.num_batches - 1:
                    self.chain.keep(cursor, parts)
                yield part.handed_over()

    def _parts(self, cursor: Cursor) -> Parts:
        with closing(self.engine.run(self._inputs(cursor), cursor.mixing)) as made:
            for batch, outputs in made:
                for number, span in enumerate(batch.spans):
                    images, targets = outputs.sample(number)
                    yield Part(images, targets, span.weights(), outputs.copy)

    def _inputs(self, cursor: Cursor) -> Iterator[SpanBatch]:
        for each in cursors(cursor):
            for spans in self.batching.groups(each.batch, self.most_batches):
                yield SpanBatch(each.epoch, spans)


class StreamingEpochs:
    """Outputs of the samples of the shards; shuffled and mixed within a window."""

    def __init__(
        self,
        engine: StreamingEngine,
        files: ShardFiles,
        manifest: Manifest,
        batching: Batching,
        decoding: Decoding,
        decoder: DaliOptions,
        window: int,
        seed: int,
        *,
        train: bool,
        substitute: bool,
        prefetch: int,
        watch: ClassWatch | None,
        stats: StatsCounter,
    ) -> None:
        self.engine, self.files, self.manifest, self.batching = engine, files, manifest, batching
        self.decoding, self.decoder, self.window, self.seed = decoding, decoder, window, seed
        self.train, self.substitute, self.prefetch = train, substitute, prefetch
        self.watch, self.stats = watch, stats
        self.known_bad: dict[tuple[str, int], str] = {}
        # A loader of remote shards that waits for its next epoch must hold none of them in the cache.
        self.chain = EpochChain(goes_on=not isinstance(files, CachedShardFiles))

    def leg(self) -> Leg:
        """What the epochs of this loader are, as a leg; no batches of it yet."""
        shuffle = self.window if self.train else 0
        return Leg(self.batching.ranks.world_size, self.batching.batch_size, shuffle, 0)

    def batches(self, cursor: Cursor) -> Generator[Part, None, None]:
        """Windows cut into batches; a batch that spans two windows is put together of both."""
        batching, size = self.batching, self.batching.batch_size
        if cursor.batch >= batching.num_batches:
            return
        self.files.check_unchanged()
        # A last batch is filled up with the outputs of the one before.
        before = batching.is_filled(cursor.batch) and cursor.batch > cursor.batches_before
        begin = cursor.batch - before
        kept: list[Part] = []
        previous: Part | None = None
        with self.chain.epoch(self._parts, replace(cursor, batch=begin)) as parts:
            for batch in range(begin, batching.num_batches):
                num_new = batching.num_new(batch)
                while sum(len(part.weights) for part in kept) < num_new:
                    kept.append(next(parts))
                taken, kept = _split(kept, num_new)
                if batching.is_filled(batch):
                    had = [previous.rows(num_new)] if previous else taken or [next(parts)]
                    taken = [*taken, *_repeated(had, size - num_new)]
                part = _joined([part.handed_over() for part in taken])
                previous = part if batching.last_batch == "fill" else None
                if batch == batching.num_batches - 1:
                    self.chain.keep(cursor, parts)
                if batch >= cursor.batch:
                    yield part

    def _parts(self, cursor: Cursor) -> Parts:
        """Windows of outputs."""
        number, skipped = divmod((cursor.batch - cursor.batches_before) * self.batching.batch_size, self.window)
        while True:
            try:
                with closing(self._inputs(cursor, number)) as inputs, closing(self._made(inputs, cursor)) as made:
                    for batch, outputs in made:
                        self._count(batch.window, cursor.mixing)
                        images, targets = outputs.sample(0)
                        yield Part(images, targets, self._weights(batch.window), outputs.copy).rows(skipped)
                        del images, targets
                        number, skipped = number + 1, 0
                        if batch.is_last:
                            cursor, number = following(cursor), 0
                return
            except DaliError as error:
                self._remember_bad(error, f"window {number} of epoch {cursor.epoch}")  # and once more, without them

    def _made(self, inputs: Generator[WindowBatch, None, None], cursor: Cursor) -> Made[WindowBatch]:
        if self.decoding.is_needed():
            inputs = decoded(inputs, self.decoding, self.decoder, self.window)
        return self.engine.run(inputs, cursor.mixing)

    def _inputs(self, cursor: Cursor, first: int) -> Generator[WindowBatch, None, None]:
        """From window number `first` of the cursor's epoch on, read ahead on a thread."""
        return prefetched(self._read(cursor, first, dict(self.known_bad)), self.prefetch)

    def _read(self, cursor: Cursor, first: int, known_bad: KnownBad) -> Generator[WindowBatch, None, None]:
        for each in cursors(cursor) if self.chain.goes_on else [cursor]:
            order = self._order(each)
            # Those that last_batch="drop" leaves out are not read.
            num_outputs = (self.batching.num_batches - each.batches_before) * self.batching.batch_size
            num_windows = -(-min(len(order.samples), num_outputs) // self.window)
            windows = read_windows(self.files, self.manifest, order, self.window, first, self.substitute, known_bad)
            with closing(windows):
                for number, window in zip(range(first, num_windows), windows, strict=False):
                    index = order.first + number * self.window
                    yield WindowBatch(window, window.images, each.epoch, index, number == num_windows - 1)
            first = 0

    def _order(self, cursor: Cursor) -> EpochOrder:
        shuffle, ranks = self.leg().shuffle, self.batching.ranks
        order = epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, ranks.rank, ranks.world_size, cursor.legs)
        if not len(order.samples):  # of a last batch that is to be filled up: with those of another rank
            return epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, legs=cursor.legs)
        return order

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

    def _count(self, window: Window, mixing: bool) -> None:
        self.stats.add(windows=1)
        self.stats.add_bad(list(window.replaced.values()))
        if self.watch and mixing:
            self.watch.add(window.labels, self.stats)

    def _weights(self, window: Window) -> torch.Tensor:
        weights = torch.ones(len(window.labels))
        if window.replaced and not self.train:
            weights[list(window.replaced)] = 0
        return weights


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
    if len(parts) == 1:
        return parts[0]
    images, targets, weights = (torch.cat(fields) for fields in zip(*(part[:3] for part in parts), strict=True))
    return Part(images, targets, weights, Copy.of(images))
