"""One epoch of outputs, from a data set in memory or from the shards.

A pipeline goes on over the epochs that follow each other. An epoch that is broken off closes it, so that nothing is
left which a later epoch could see (25 ms until the first batch of a new one with DALI 1.34, 31 with 2.4: README.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from fdt_pipeline.loader.bad_samples import find_bad
from fdt_pipeline.loader.checkpoint import Cursor
from fdt_pipeline.loader.decoding import Decoding, preprocess_name
from fdt_pipeline.loader.engines import (
    Incoming,
    Made,
    ResidentEngine,
    SpanBatch,
    StreamingEngine,
    decoded,
    grouped,
)
from fdt_pipeline.loader.memory import SHUFFLED
from fdt_pipeline.loader.mixes import MixSchedule, are_equal, keeps_ring
from fdt_pipeline.loader.order import Batching, EpochOrder, Leg, epoch_order
from fdt_pipeline.loader.prefetch import prefetched
from fdt_pipeline.loader.reading import KnownBad, first_positions, read_samples
from fdt_pipeline.loader.running import Copy, DaliError, DaliOptions
from fdt_pipeline.loader.stats import ClassWatch, StatsCounter
from fdt_pipeline.shards import Manifest
from fdt_pipeline.shards.files import CachedShardFiles, ShardFiles


class Part(NamedTuple):
    """A batch of this rank; weights f32[n]: 0 for those that stand for no sample, else 1; copy: on a GPU."""

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    copy: Copy | None = None

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

    def __init__(self, schedule: MixSchedule, goes_on: bool = True) -> None:
        self.schedule, self.goes_on = schedule, goes_on
        self._kept: tuple[Cursor, Parts] | None = None

    @contextmanager
    def epoch(self, make: Callable[[Cursor], Parts], cursor: Cursor) -> Iterator[Parts]:
        """What is left of an epoch, and where the chain goes on, all epochs behind it. make: cursor -> these parts."""
        foreseen, parts = self._kept or (None, None)
        self._kept = None
        if parts is not None and not (foreseen and foreseen.is_same(cursor)):
            parts.close()
            parts = None
        if parts is None:
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
        after = self.following(cursor)
        if after is not None:
            self._kept = after, parts

    def close(self) -> None:
        """End the pipeline that waits for the next epoch."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()

    def following(self, cursor: Cursor) -> Cursor | None:
        """The beginning of the next epoch, if the same pipeline makes that too."""
        epoch = cursor.epoch + 1
        if not self.goes_on or epoch >= 2**32:
            return None
        try:
            mix = self.schedule.of(epoch)
        except Exception:  # of a user's function: raised again when that epoch begins
            return None
        return Cursor(epoch, mix=mix) if are_equal(mix, cursor.mix) else None

    def cursors(self, cursor: Cursor | None) -> Iterator[Cursor]:
        """This one, and the beginnings of the epochs behind it that the same pipeline makes."""
        while cursor is not None:
            yield cursor
            cursor = self.following(cursor)


class _Epochs:
    """What is left of an epoch, batch after batch."""

    chain: EpochChain
    batching: Batching

    def batches(self, cursor: Cursor) -> Parts:
        """From the cursor on, to the end of its epoch."""
        num_batches = self.batching.num_batches
        if cursor.batch >= num_batches:
            return
        self._check()
        with self.chain.epoch(self._parts, cursor) as parts:
            for batch in range(cursor.batch, num_batches):
                part = next(parts)
                if batch == num_batches - 1:
                    self.chain.keep(cursor, parts)
                yield part.handed_over()

    def _check(self) -> None:
        """Before an epoch."""

    def _parts(self, cursor: Cursor) -> Parts:
        """From the cursor on, and where the chain goes on, of all epochs behind it."""
        raise NotImplementedError

    def _after(self, cursor: Cursor) -> Cursor | None:
        """Where the same pipeline goes on after a batch; None: it does not."""
        is_last = cursor.batch == self.batching.num_batches - 1
        return self.chain.following(cursor) if is_last else replace(cursor, batch=cursor.batch + 1)


class ResidentEpochs(_Epochs):
    """Outputs drawn from a set in memory. most_batches: that the engine makes together."""

    def __init__(self, engine: ResidentEngine, batching: Batching, most_batches: int, schedule: MixSchedule) -> None:
        self.engine, self.batching, self.most_batches = engine, batching, most_batches
        self.chain = EpochChain(schedule)

    def leg(self) -> None:
        """Global batches do not depend on the number of ranks, so there are no legs."""

    def _parts(self, cursor: Cursor) -> Parts:
        at: Cursor | None = cursor
        while at is not None:  # once, unless the mix has been changed and changed back since inputs were made
            with closing(self.engine.run(self._inputs(at), at.mix)) as made:
                for batch, outputs in made:
                    for number, span in enumerate(batch.spans):
                        images, targets = outputs.sample(number)
                        yield Part(images, targets, span.weights(), outputs.copy)
                        del images, targets
                        at = self._after(at)
                        if at is None:
                            return

    def _inputs(self, cursor: Cursor) -> Iterator[SpanBatch]:
        for each in self.chain.cursors(cursor):
            for spans in self.batching.groups(each.batch, self.most_batches):
                yield SpanBatch(each.epoch, spans)


class StreamingEpochs(_Epochs):
    """Outputs of the samples of the shards, in shuffled order: each batch comes into the ring, and is mixed with what
    is there, or within itself. When an epoch begins, the ring is empty."""

    def __init__(
        self,
        engine: StreamingEngine,
        files: ShardFiles,
        manifest: Manifest,
        batching: Batching,
        decoding: Decoding,
        decoder: DaliOptions,
        ring: int,
        seed: int,
        schedule: MixSchedule,
        *,
        train: bool,
        substitute: bool,
        prefetch: int,
        watch: ClassWatch,
        stats: StatsCounter,
    ) -> None:
        self.engine, self.files, self.manifest, self.batching = engine, files, manifest, batching
        self.decoding, self.decoder, self.ring, self.seed = decoding, decoder, ring, seed
        self.train, self.substitute, self.prefetch = train, substitute, prefetch
        self.watch, self.stats = watch, stats
        self.starts = first_positions(manifest)
        self.known_bad: dict[tuple[str, int], str] = {}
        # A loader of remote shards that waits for its next epoch must hold none of them in the cache.
        self.chain = EpochChain(schedule, goes_on=not isinstance(files, CachedShardFiles))

    def leg(self) -> Leg:
        """What the epochs of this loader are, as a leg; no batches of it yet."""
        shuffle = min(self.ring, SHUFFLED) if self.train else 0
        return Leg(self.batching.ranks.world_size, self.batching.batch_size, shuffle, 0)

    def _check(self) -> None:
        self.files.check_unchanged()

    def _parts(self, cursor: Cursor) -> Parts:
        at: Cursor | None = cursor
        while at is not None:
            try:
                with closing(self._made(at)) as made:
                    for group, outputs in made:
                        for number, batch in enumerate(group):
                            self._count(batch, at)
                            if not batch.has_outputs:
                                continue
                            images, targets = outputs.sample(number)
                            yield Part(images, targets, self._weights(batch), outputs.copy)
                            del images, targets
                            at = self._after(at)
                            if at is None:
                                return
            except DaliError as error:
                assert at is not None
                self._remember_bad(error, f"batch {at.batch} of epoch {at.epoch}")  # and once more, without them

    def _made(self, cursor: Cursor) -> Made[list[Incoming]]:
        """From the cursor on; samples are read ahead on a thread."""
        inputs = self._read(cursor, dict(self.known_bad))
        if self.decoding.is_needed() and not self.engine.decodes:
            ahead = prefetched(inputs, self.prefetch)
            groups = grouped(decoded(ahead, self.decoding, self.decoder, self.batching.batch_size), 1)
        else:
            together = self.engine.together
            groups = prefetched(grouped(inputs, together), math.ceil(self.prefetch / together))
        return self._run(groups, cursor)

    def _run(self, groups: Generator[list[Incoming], None, None], cursor: Cursor) -> Made[list[Incoming]]:
        with closing(groups), closing(self.engine.run(groups, cursor.mix)) as made:
            yield from made

    def _read(self, cursor: Cursor, known_bad: KnownBad) -> Generator[Incoming, None, None]:
        size = self.batching.batch_size
        for each in self.chain.cursors(cursor):
            (order, num_new), num_batches = self._order(each), self.batching.num_batches - each.batches_before
            order = order.of_batches(num_batches, size, self.batching.last_batch == "fill")
            begin, end = (each.batch - each.batches_before) * size, len(order.samples)
            # A resumed ring is filled from a batch's beginning on, as then the same samples take bad ones' places.
            oldest = max(0, min(begin + size, end) - self.ring) // size * size if keeps_ring(each.mix) else begin
            bounds = order.bounds(min(begin, oldest), size)
            batches = read_samples(
                self.files, self.manifest, order, bounds, self.substitute, known_bad, self.engine.together,
                with_sizes=self.decoding.crop is not None,
            )  # fmt: skip
            with closing(batches):
                for (at, stop), samples in zip(bounds, batches, strict=True):
                    numbers = self.decoding.of_samples(self.seed, each.epoch, samples, self.starts)
                    yield Incoming(
                        samples, samples.images, each.epoch, order.first + at, at, min(stop, num_new) - at,
                        has_outputs=at >= begin, numbers=numbers,
                    )  # fmt: skip

    def _order(self, cursor: Cursor) -> tuple[EpochOrder, int]:
        """-> (of this rank's samples, how many there are): without any, those of another rank, to fill up a last batch
        with."""
        shuffle, ranks = self.leg().shuffle, self.batching.ranks
        order = epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, ranks.rank, ranks.world_size, cursor.legs)
        num_new = len(order.samples)
        if not num_new:
            order = epoch_order(self.manifest, self.seed, cursor.epoch, shuffle, legs=cursor.legs)
        return order, num_new

    def _remember_bad(self, error: DaliError, where: str) -> None:
        """DALI loses a whole batch to one bad sample, and does not say which: it is looked for among those in flight.
        RuntimeError, naming what was found, unless bad samples are substituted."""
        in_flight = [batch for each in error.inputs for batch in (each if isinstance(each, list) else [each])]
        named = [(each.samples, find_bad(each, self.manifest, self.decoding)) for each in in_flight]
        found = [(samples, i, reason) for samples, reasons in named for i, reason in reasons.items()]
        if found and self.substitute:
            self.known_bad |= {samples.identity(i): reason for samples, i, reason in found}
            return
        url = self.files.folder.url
        names = "; ".join(f"{samples.name(i)}: {reason}" for samples, i, reason in found)
        hint = f"if a sample does not decode, `fdt-pipeline verify --decode {url}` names shard and key"
        if self.decoding.preprocess:
            name = preprocess_name(self.decoding.preprocess)
            hint = f"or preprocess={name} failed, or gave another shape or type than it was given; {hint}"
        what = f"a sample of {url} could not be read or decoded" if names else f"DALI failed on {url}"
        raise RuntimeError(f"{where}: {what}: {error}; {names or hint}") from error

    def _count(self, batch: Incoming, cursor: Cursor) -> None:
        if batch.has_outputs:
            self.stats.add_bad(batch.samples.replaced.values())
        if cursor.mix is None:
            return
        self.watch.come_in(batch.position, batch.samples.labels[:, 0], keeps_ring(cursor.mix))
        if batch.has_outputs:
            self.watch.mixed(cursor.mix, self.stats)

    def _weights(self, batch: Incoming) -> torch.Tensor:
        """f32[n]: 0 for samples that only fill the batch up, and in evaluation for those in a bad one's place."""
        weights = torch.ones(batch.size)
        if batch.num_new < batch.size:
            weights[max(0, batch.num_new) :] = 0
        if batch.samples.replaced and not self.train:
            weights[list(batch.samples.replaced)] = 0
        return weights
