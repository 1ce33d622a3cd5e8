"""Timing the batches of one contender, epoch after epoch; an epoch of the wrong length is refused on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..rounds import rounded
from .task import Batch, Contender, RefusedError, Task

WARM_UP = 0.2  # of the seconds of a turn
ENOUGH = 16  # warm-up batches from which on repeated ones are refused
IMAGES, PIXELS = 8, 8  # a fingerprint is of 8 images of a batch, and 8 pixels along each side of them


class EpochCount:
    """Counts the images of an epoch, which may be from `least` to `most`."""

    def __init__(self, task: Task) -> None:
        """Each worker may leave out its last batch."""
        self.most = task.manifest.num_samples
        self.least = max(1, self.most - max(1, task.num_workers) * task.batch_size + 1)
        self._images = 0

    def add(self, images: int) -> None:
        """RefusedError where an epoch has too many."""
        self._images += images
        if self._images > self.most:
            raise RefusedError(f"an epoch has {self._images} images or more, expected the set's {self.most}")

    def end(self, epoch: int) -> None:
        """RefusedError where an epoch had too few; epoch -1 is none."""
        if epoch >= 0 and self._images < self.least:
            raise RefusedError(f"epoch {epoch} has {self._images} images, expected {self.least} to {self.most}")
        self._images = 0


class BatchTimer:
    """Takes the batches of one contender from turn to turn; RefusedError where they are not an honest loader's.

    step: what a trainer does with a batch. ready: waits for what a device has still to do. endless: the contender gives
    one batch for ever, so that epochs have no length and batches may come again.
    """

    def __init__(
        self,
        contender: Contender,
        task: Task,
        *,
        step: Callable[[Any, Any], None] | None = None,
        ready: Callable[[], None] = lambda: None,
        endless: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._contender, self._step, self._ready, self._clock = contender, step, ready, clock
        self._count = None if endless else EpochCount(task)
        self._fingerprints: list[bytes] = []
        self._ahead = 2 * task.num_workers + 4  # what lies ready after a rest: two batches a worker, and some more
        self.epoch, self.taken = -1, 0  # images taken so far, those of warm-ups included
        self._batches: Iterator[Batch] = iter(())

    def first_epoch(self, limit: float) -> dict[str, Any]:
        """Seconds until the first batch, and the images and seconds of the first epoch, that batch included.

        It ends with the first batch of the second epoch, or after `limit` seconds.
        """
        begin, images = self._clock(), self._take()
        self._ready()
        first_batch = self._clock() - begin
        while self.epoch == 0 and self._clock() - begin < limit:
            images += self._take()
        self._ready()
        epoch = {"images": images, "seconds": rounded(self._clock() - begin), "whole": self.epoch > 0}
        return {"first_batch_seconds": rounded(first_batch), "first_epoch": epoch}

    def turn(self, seconds: float) -> dict[str, Any]:
        """At least `seconds` of whole batches, across the ends of epochs, after a warm-up.

        waited: the part of the seconds in which the trainer had no batch (all of it without a trainer). p50, p95, p99:
        seconds a batch. epoch: the one in which the turn ended.
        """
        self._warm_up(seconds)
        self._ready()
        times: list[float] = []
        images, waited = 0, 0.0
        begin = before = self._clock()
        while before - begin < seconds or len(times) < 2:
            images += self._take()
            waited += self._clock() - before
            if self._step is not None:
                self._step(*self._batch)
            now = self._clock()
            times.append(now - before)
            before = now
        self._ready()
        total = self._clock() - begin
        quantiles = np.quantile(times, (0.5, 0.95, 0.99), method="inverted_cdf").tolist()
        figures = {"seconds": total, "waited": waited, **dict(zip(("p50", "p95", "p99"), quantiles, strict=True))}
        return {
            "rate": rounded(images / total),
            "images": images,
            "batches": len(times),
            **{name: rounded(value) for name, value in figures.items()},
            "epoch": self.epoch,
        }

    def _warm_up(self, seconds: float) -> None:
        """Uses up what was made ahead while others had their turns."""
        begin, taken = self._clock(), 0
        while taken < self._ahead or self._clock() - begin < WARM_UP * seconds:
            self._take()
            if self._count is not None:
                self._check_new(self._batch[0])
            if self._step is not None:
                self._step(*self._batch)
                # Against a trainer a queue is full in the long run, so that it need not be used up.
                if taken >= 1 and self._clock() - begin >= seconds:
                    break
            taken += 1

    def _check_new(self, images: Any) -> None:
        """RefusedError where fewer than half of the warm-ups' batches differ: shuffled and augmented ones always do."""
        h, w = images.shape[2:]
        some = images[:IMAGES, :, :: max(1, h // PIXELS), :: max(1, w // PIXELS)]
        self._fingerprints.append(some.float().cpu().numpy().tobytes())
        seen, different = len(self._fingerprints), len(set(self._fingerprints))
        if seen >= ENOUGH and 2 * different < seen:
            raise RefusedError(f"the same batch again and again: {seen} batches, {different} different")

    def _take(self) -> int:
        """Take the next batch, of a new epoch where one ends, and return how many images it has."""
        batch = next(self._batches, None)
        while batch is None:
            if self._count is not None:
                self._count.end(self.epoch)
            self.epoch += 1
            self._batches = iter(self._contender.epoch(self.epoch))
            batch = next(self._batches, None)
        self._batch = batch
        images = len(batch[0])
        if self._count is not None:
            self._count.add(images)
        self.taken += images
        return images
