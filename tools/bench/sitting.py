"""What a contender's own process does: sets it up, gives it its turns, and counts what they use."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import torch

from .entries import CountedBatches, FewerImages, find_entry
from .epoch_count import EpochCount
from .fingerprints import Fingerprints
from .interval import rounded
from .resources import Usage, usage_of
from .rest import settle
from .spec import Spec
from .task import Contender
from .turn import Taker


class Sitting:
    """batches: counted up with each batch."""

    def __init__(self, spec: Spec, batches: ctypes.c_uint64) -> None:
        self._spec, self._batches = spec, batches
        self._device = torch.device(spec.task.device)
        self._gpu_bytes = 0
        self._taker: Taker | None = None
        self._contender: Contender | None = None

    def start(self, seconds: float) -> dict[str, Any]:
        """Set up, take the first batch, and go on with the first epoch for at most `seconds`."""
        before = self._used()
        begin = time.perf_counter()
        self._contender = CountedBatches(self._made(), self._batches)
        set_up = time.perf_counter() - begin
        self._taker = self._new_taker(self._contender)
        # A model without a loader has no epochs: one batch.
        epoch = self._taker.first_epoch(seconds if self._spec.kind != "model" else 0.0)
        return {"set_up_seconds": rounded(set_up), **epoch, **self._rested(before)}

    def turn(self, seconds: float) -> dict[str, Any]:
        """A turn, and what was used from rest to rest for all images of it, those of the warm-up too."""
        assert self._taker is not None
        before, taken = self._used(), self._taker.taken
        turn = self._taker.turn(seconds)
        return {**turn.to_dict(), "taken": self._taker.taken - taken, **self._rested(before)}

    def close(self) -> None:
        self._taker = None
        if self._contender is not None:
            self._contender.close()

    def _made(self) -> Contender:
        spec = self._spec
        if spec.kind == "model":
            from .training import same_batch  # models: not in a process that has none

            return same_batch(spec.task)
        contender = find_entry(spec.contender).make(spec.task)
        return FewerImages(contender, spec.lost) if spec.lost else contender

    def _new_taker(self, contender: Contender) -> Taker:
        spec, endless, step = self._spec, self._spec.kind == "model", None
        if spec.model is not None:
            from .training import Trainer

            step = Trainer(spec.model, spec.task).step
        return Taker(
            contender,
            spec.task,
            step=step,
            ready=self._ready,
            count=EpochCount.none() if endless or spec.lost else None,
            fingerprints=None if endless else Fingerprints(),
        )

    def _ready(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _used(self) -> tuple[Usage, int]:
        """And the GPU's bytes that are taken, by whomever: the others rest meanwhile."""
        taken = 0
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            taken = total - free
        return usage_of(os.getpid()), taken

    def _rested(self, before: tuple[Usage, int]) -> dict[str, Any]:
        """Waits until all rests, and says what was used since; without what the waiting took."""
        own = time.thread_time()
        rests = settle()
        waiting = time.thread_time() - own
        usage, gpu = self._used()
        self._gpu_bytes += gpu - before[1]
        used = usage.since(before[0])
        used["cpu"] = rounded(max(0.0, used["cpu"] - waiting))
        return {**used, "gpu": self._gpu_bytes, "rests": rests}
