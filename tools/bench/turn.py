"""A contender's turn: take its batches for a while, and note how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .epoch_count import EpochCount
from .fingerprints import Fingerprints
from .interval import quantile, rounded
from .task import Contender, Task

Clock = Callable[[], float]
Step = Callable[[Any, Any], None]
WARM_UP = 0.2  # of the seconds of a turn


@dataclass(frozen=True)
class Turn:
    """images in seconds; waited: the part of them in which the trainer had no batch (all of it without a trainer).
    p50, p95, p99: seconds a batch. epoch: the one that it ended in."""

    images: int
    batches: int
    seconds: float
    waited: float
    p50: float
    p95: float
    p99: float
    epoch: int

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        found = {key: rounded(value) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {"rate": rounded(self.rate), **found}


class Taker:
    """Takes the batches of one contender, epoch after epoch, from turn to turn.

    step: what a trainer does with a batch. ready: waits for what a device has still to do. count: how many images an
    epoch must have. fingerprints: None where a batch may come again. RefusedError where a contender keeps to neither.
    """

    def __init__(
        self,
        contender: Contender,
        task: Task,
        *,
        step: Step | None = None,
        ready: Callable[[], None] = lambda: None,
        count: EpochCount | None = None,
        fingerprints: Fingerprints | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._contender, self._step, self._ready, self._clock = contender, step, ready, clock
        self._count = count or EpochCount.of(task)
        self._fingerprints = fingerprints
        self._at_once = int(getattr(contender, "batches_at_once", 1))
        # What lies ready after a rest: two batches a worker, or a few windows that are cut into batches.
        self._ahead = max(2 * task.num_workers + 4, 3 * self._at_once)
        self.epoch, self.taken = -1, 0  # images taken so far, in warm-ups too
        self._batches: Iterator[tuple[Any, Any]] = iter(())

    def first_epoch(self, limit: float) -> dict[str, Any]:
        """How long its first batch takes, and how many images come in how many seconds, that one among them: up to the
        first batch of the second epoch, or for `limit` seconds."""
        begin, images = self._clock(), self._take()
        self._ready()
        first_batch = self._clock() - begin
        while self.epoch == 0 and self._clock() - begin < limit:
            images += self._take()
        self._ready()
        seconds = self._clock() - begin
        epoch = {"images": images, "seconds": rounded(seconds), "whole": self.epoch > 0}
        return {"first_batch_seconds": rounded(first_batch), "first_epoch": epoch}

    def turn(self, seconds: float) -> Turn:
        """At least `seconds` of whole batches, across the ends of epochs, after a warm-up that uses up what had been
        made ahead while others had their turns."""
        self._warm_up(seconds)
        self._ready()
        times: list[float] = []
        images, waited = 0, 0.0
        begin = before = self._clock()
        while before - begin < seconds or len(times) < 2 * self._at_once or len(times) % self._at_once:
            images += self._take()
            taken = self._clock()
            waited += taken - before
            if self._step is not None:
                self._step(*self._batch)
            now = self._clock() if self._step is not None else taken
            times.append(now - before)
            before = now
        self._ready()
        total = self._clock() - begin
        p50, p95, p99 = (quantile(times, share) for share in (0.5, 0.95, 0.99))
        return Turn(images, len(times), total, waited, p50, p95, p99, self.epoch)

    def _warm_up(self, seconds: float) -> None:
        begin, taken = self._clock(), 0
        while taken < self._ahead or self._clock() - begin < WARM_UP * seconds:
            self._take()
            if self._fingerprints is not None:
                self._fingerprints.add(self._batch[0])
            if self._step is not None:
                self._step(*self._batch)
                # Against a trainer a queue is full in the long run, so that it need not be used up.
                if taken >= 1 and self._clock() - begin >= seconds:
                    break
            taken += 1

    def _take(self) -> int:
        """The next batch, and how many images it has; a new epoch where one ends."""
        batch = next(self._batches, None)
        while batch is None:
            self._count.end(self.epoch)
            self.epoch += 1
            self._batches = iter(self._contender.epoch(self.epoch))
            batch = next(self._batches, None)
        self._batch = batch
        images = len(batch[0])
        self._count.add(images)
        self.taken += images
        return images
