"""Who runs the tasks: this process, processes of this machine, or a Ray cluster. All write the same bytes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from threading import Thread
from types import ModuleType
from typing import Any, Literal, get_args

from .progress import Progress
from .task import Record, Task, Work, run_task

# A node may die at any time, and take more than one task with it; errors of the task itself are not tried again.
MAX_RETRIES = 20
_AHEAD = 2  # tasks a CPU that are handed to Ray: enough that none waits, few enough to hold in memory

Engine = Literal["local", "ray"]
OnBad = Literal["stop", "quarantine"]
Records = Generator[Record, None, None]
"""Records come as the tasks end, in whatever order; the first error ends the run, and so does closing it."""


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it, whatever it writes: arguments of `write_shards`."""

    overwrite: bool
    resume: bool
    on_bad: OnBad
    workers: int
    engine: Engine
    progress: Progress | None

    def __post_init__(self) -> None:
        for name, known in (("on_bad", get_args(OnBad)), ("engine", get_args(Engine))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


# Spawned, not forked: a process that has run threads (NumPy's, torch's) cannot be forked safely. 0.2 s each.
_processes = multiprocessing.get_context("spawn")


class WorkerError(RuntimeError):
    """A worker process was killed."""


def run_tasks(tasks: Iterator[Task], work: Work, options: RunOptions, num_tasks: int) -> Records:
    num_processes = min(options.workers, num_tasks)
    if options.engine == "ray":
        return run_on_ray(tasks, work)
    if num_processes > 1:
        return run_in_processes(tasks, work, num_processes)
    return (run_task(task, work) for task in tasks)


def run_in_processes(tasks: Iterator[Task], work: Work, num_processes: int) -> Records:
    """At most one task a process is under way. All end with the iterator, whether it was exhausted or not."""
    ends_with_us, end = _processes.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_processes, _processes, _end_with, (ends_with_us,))
    pending: set[Future[Record]] = set()
    needs_main: bool | None = None

    def submit(number: int) -> None:
        """Hand out so many tasks more, which may start processes."""
        nonlocal needs_main
        for task in islice(tasks, number):
            if needs_main is None:
                needs_main = b"__main__" in pickle.dumps(task)
            with _without_interrupts(), nullcontext() if needs_main else _without_main():
                pending.add(pool.submit(run_task, task, work))

    try:
        submit(num_processes)
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                pending.remove(future)
                record = future.result()
                submit(1)
                yield record
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed, often for want of memory: what is finished is kept, go on with --resume, and "
            "with fewer --workers"
        ) from error
    finally:
        end.close()
        pool.shutdown(cancel_futures=True)
        ends_with_us.close()


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed, as the parent does when a run ends, or the kernel when
    the parent dies. At once, in the middle of a task: a resumed run must not find another process still writing."""

    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here never sees Ctrl-C, not even while it imports: the parent does, and ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """A spawned process would import the program that started it, which takes seconds where that imports torch, and
    starts it again where it has no `if __name__ == "__main__"`. Only samples of a class that it defines need it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def run_on_ray(tasks: Iterator[Task], work: Work) -> Records:
    """Tasks on the cluster that this process is connected to, else the one of $RAY_ADDRESS, else this machine's."""
    ray = _connected()
    run: Any = ray.remote(run_task).options(max_retries=MAX_RETRIES, name="fdt_pipeline.shard")
    work_there = ray.put(work)
    pending: list[Any] = []
    try:
        while True:
            room = max(2, _AHEAD * int(ray.cluster_resources().get("CPU", 1))) - len(pending)
            pending += [run.remote(task, work_there) for task in islice(tasks, max(0, room))]
            if not pending:
                return
            done, pending = ray.wait(pending, num_returns=1)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the task's own error, whose text is not a traceback
    finally:
        for task in pending:
            ray.cancel(task, force=True)


def _connected() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'fdt-pipeline[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise OSError(
                f"no Ray cluster to be found ({error}): start one with `ray start --head`, or name it in RAY_ADDRESS"
            ) from error
    return ray
