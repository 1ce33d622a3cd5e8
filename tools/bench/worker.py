"""A contender in a worker process of its own, seen from both sides: memory, CPU time and threads are its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from ..rounds import rounded
from .contenders import find_entry
from .resources import Usage, usage, used_between, wait_until_idle
from .task import TIMEOUT, Batch, Contender, FailedError, NotInstalledError, RefusedError, Spec
from .timing import BatchTimer

if TYPE_CHECKING:
    from .subsets import CheckSets

SHUTDOWN_TIMEOUT = 20.0  # seconds


class WorkerHandle:
    """The parent's side: a spawned process, which leads a process group so that what it starts ends with it.

    Its methods raise FailedError, RefusedError or NotInstalledError where the contender cannot do what is asked.
    timeout: seconds without a batch after which it is stopped and FailedError raised; found after at most twice that.
    """

    def __init__(self, spec: Spec, timeout: float = TIMEOUT) -> None:
        context = multiprocessing.get_context("spawn")
        self.timeout = timeout
        self._connection, theirs = context.Pipe()
        self._batches = context.Value("Q", lock=False)
        self._process = context.Process(target=serve, args=(theirs, spec, self._batches), name=spec.contender)
        self._process.start()
        theirs.close()

    @property
    def batches(self) -> int:
        """How many batches the contender has given so far."""
        return self._batches.value

    def start(self, seconds: float) -> dict[str, Any]:
        """Set the contender up, and take its first epoch, for at most `seconds`."""
        return self._ask("start", seconds)

    def check(self, sets: CheckSets) -> dict[str, Any]:
        return self._ask("check", sets)

    def turn(self, seconds: float) -> dict[str, Any]:
        return self._ask("turn", seconds)

    def _ask(self, verb: str, argument: Any) -> dict[str, Any]:
        try:
            self._connection.send((verb, argument))
            self._wait()
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(SHUTDOWN_TIMEOUT)
            raise FailedError(f"its process ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _wait(self) -> None:
        """Wait for an answer, as long as batches come meanwhile."""
        before = self.batches
        while not self._connection.poll(self.timeout):
            if self.batches == before:
                self._kill()
                raise FailedError(
                    f"it gave no batch for {self.timeout:g} s and was stopped; --timeout S waits longer, such as for "
                    "the first run on a large set, where a contender writes its own format"
                )
            before = self.batches

    def close(self) -> None:
        """Ask the process to end. One that does not is killed, and FailedError raised."""
        self._connection.close()
        self._process.join(SHUTDOWN_TIMEOUT)
        hangs = self._process.exitcode is None
        self._kill()
        self._process.close()
        if hangs:
            raise FailedError(f"it did not end within {SHUTDOWN_TIMEOUT:g} s of being closed, and was stopped")

    def _kill(self) -> None:
        """Kill the process, and all that it has started."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # before it leads a group
        self._process.join()


def serve(connection: Connection, spec: Spec, batches: ctypes.c_uint64) -> None:
    """The process: does what it is asked until the other end closes. batches: counted up with each batch."""
    os.setsid()  # a Ctrl-C at the terminal is for the parent, which then closes us
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # results go to stdout, and what libraries print does not
    with closing(Worker(spec, batches)) as worker:
        while True:
            try:
                verb, argument = connection.recv()
            except EOFError:
                return
            try:
                answer = getattr(worker, verb)(argument)
            except (RefusedError, NotInstalledError) as error:
                answer = error
            except Exception as error:  # whatever a contender raises is passed on, and the other contenders go on
                traceback.print_exc()
                answer = FailedError(f"{type(error).__name__}: {' '.join(str(error).split())}")
            try:
                connection.send(answer)
            except BrokenPipeError:  # the parent was interrupted meanwhile
                return


def _sleep(seconds: float, images: Any, targets: Any) -> None:
    """A trainer's step of so many seconds, in which the CPU is idle."""
    time.sleep(seconds)


class CountedBatches:
    """A contender that counts up `batches`, in memory shared with the parent, which so notices one that hangs."""

    def __init__(self, contender: Contender, batches: ctypes.c_uint64) -> None:
        self._contender, self._counted = contender, batches
        self.close = contender.close

    def epoch(self, number: int) -> Iterator[Batch]:
        for batch in self._contender.epoch(number):
            self._counted.value += 1
            yield batch


class Worker:
    """Inside the process: sets the contender up, times its turns, and counts what they use."""

    def __init__(self, spec: Spec, batches: ctypes.c_uint64) -> None:
        self._spec, self._batches = spec, batches
        self._device = torch.device(spec.task.device)
        self._gpu_bytes = 0
        self._timer: BatchTimer | None = None
        self._contender: Contender | None = None

    def check(self, sets: CheckSets) -> dict[str, Any]:
        from .checks import check

        entry = find_entry(self._spec.contender)
        counted = replace(entry, make=lambda task: CountedBatches(entry.make(task), self._batches))
        return check(counted, self._spec.task, sets)

    def start(self, seconds: float) -> dict[str, Any]:
        """Set up, take the first batch, and go on with the first epoch for at most `seconds`."""
        spec, before = self._spec, self._used()
        begin = time.perf_counter()
        if spec.kind == "model":
            from .training import SameBatch  # models: not in a process that has none

            made: Contender = SameBatch(spec.task)
        else:
            made = find_entry(spec.contender).make(spec.task)
        self._contender = CountedBatches(made, self._batches)
        set_up = time.perf_counter() - begin
        step: Callable[[Any, Any], None] | None = None
        if spec.step_ms is not None:
            step = partial(_sleep, spec.step_ms / 1e3)
        if spec.model is not None:
            from .training import Trainer

            step = Trainer(spec.model, spec.task).step
        alone, on_gpu = spec.kind == "model", self._device.type == "cuda"
        ready: Callable[[], None] = partial(torch.cuda.synchronize, self._device) if on_gpu else lambda: None
        self._timer = BatchTimer(self._contender, spec.task, step=step, ready=ready, endless=alone)
        epoch = self._timer.first_epoch(0.0 if alone else seconds)  # a model without a loader has no epochs: one batch
        return {"set_up_seconds": rounded(set_up), **epoch, **self._used_since(before)}

    def turn(self, seconds: float) -> dict[str, Any]:
        """A turn, and what was used for all of its images from idle to idle, those of the warm-up included."""
        assert self._timer is not None
        before, taken = self._used(), self._timer.taken
        turn = self._timer.turn(seconds)
        return {**turn, "taken": self._timer.taken - taken, **self._used_since(before)}

    def close(self) -> None:
        self._timer = None
        if self._contender is not None:
            self._contender.close()

    def _used(self) -> tuple[Usage, int]:
        """What the process uses, and the bytes of the GPU that are taken by anybody: others are idle meanwhile."""
        free, total = torch.cuda.mem_get_info(self._device) if self._device.type == "cuda" else (0, 0)
        return usage(), total - free

    def _used_since(self, before: tuple[Usage, int]) -> dict[str, Any]:
        """Wait until all is idle, and say what was used since `before`, without what the waiting took."""
        own = time.thread_time()
        rests = wait_until_idle()
        waiting = time.thread_time() - own
        now, gpu = self._used()
        used = used_between(before[0], now)
        used["cpu"] = rounded(max(0.0, used["cpu"] - waiting))
        self._gpu_bytes += gpu - before[1]
        return {**used, "gpu": self._gpu_bytes, "rests": rests}
