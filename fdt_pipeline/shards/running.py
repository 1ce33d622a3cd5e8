"""Who runs the tasks: this process, processes of this machine, or a Ray cluster. All write the same bytes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from types import ModuleType
from typing import Any, Literal

from .record import Record
from .task import Task, Work, run_task

# A node may die at any time, and take more than one task with it; errors of the task itself are not tried again.
MAX_RETRIES = 20
_AHEAD = 2  # tasks a CPU that are handed to Ray: enough that none waits, few enough to hold in memory

Engine = Literal["local", "ray"]
Runner = Callable[[Iterator[Task], Work], Generator[Record, None, None]]
"""Records come as the tasks end, in whatever order; the first error ends the run, and so does closing it."""

# Spawned, not forked: a process that has run threads (NumPy's, torch's) cannot be forked safely. 0.2 s each.
_processes = multiprocessing.get_context("spawn")


class WorkerError(RuntimeError):
    """A worker process ended without a word, or the traceback of an error in another process."""


def choose_runner(engine: str, workers: int, num_tasks: int) -> Runner:
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be one of local, ray, got {engine!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if engine == "ray":
        return run_on_ray
    num_processes = min(workers, num_tasks)
    return run_here if num_processes <= 1 else lambda tasks, work: run_in_processes(tasks, work, num_processes)


def run_here(tasks: Iterator[Task], work: Work) -> Generator[Record, None, None]:
    return (run_task(task, work) for task in tasks)


def run_in_processes(tasks: Iterator[Task], work: Work, num_processes: int) -> Generator[Record, None, None]:
    """At most one task a process is under way. All end with the iterator, whether it was exhausted or not."""
    workers: list[_Worker] = []
    try:
        for _, task in zip(range(num_processes), tasks):  # noqa: B905
            workers.append(_Worker(work, needs_main=b"__main__" in pickle.dumps(task)))
            workers[-1].give(task)
        busy = {worker.connection: worker for worker in workers}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                record = worker.take()
                following = next(tasks, None)
                if following is None:
                    del busy[connection]  # type: ignore[arg-type]
                else:
                    worker.give(following)
                yield record
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, work: Work, needs_main: bool) -> None:
        self.connection, other = _processes.Pipe()
        self._process: Any = _processes.Process(target=_serve, args=(other, work), daemon=True)
        with _without_interrupts(), nullcontext() if needs_main else _without_main():
            self._process.start()
        other.close()  # so that the pipe ends with the process
        self._task: Task | None = None

    def give(self, task: Task) -> None:
        self._task = task
        try:
            self.connection.send(task)
        except BrokenPipeError:
            raise self._death() from None

    def take(self) -> Record:
        try:
            return record_of(self.connection.recv())
        except EOFError:
            raise self._death() from None

    def end(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._process.close()

    def _death(self) -> WorkerError:
        self._process.join(5)
        assert self._task is not None
        return WorkerError(
            f"a worker process ended with exit code {self._process.exitcode} in task {self._task.number} (-9 is often "
            "for want of memory): what is finished is kept, go on with --resume, and with fewer --workers"
        )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here never sees Ctrl-C, not even while it imports: the parent does, and ends it."""
    resource_tracker.ensure_running()  # which would lift the block when it starts
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


def _serve(connection: Connection, work: Work) -> None:
    """Run tasks until the other end of the pipe is closed."""
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(outcome(connection.recv(), work))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """End at once, in the middle of a task: a resumed run must not find another process still writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def run_on_ray(tasks: Iterator[Task], work: Work) -> Generator[Record, None, None]:
    """Tasks on the cluster that this process is connected to, else the one of $RAY_ADDRESS, else this machine's."""
    ray = _connected()
    run: Any = ray.remote(outcome).options(max_retries=MAX_RETRIES, name="fdt_pipeline.shard")
    work_there = ray.put(work)
    pending: list[Any] = []
    try:
        while True:
            room = max(2, _AHEAD * int(ray.cluster_resources().get("CPU", 1))) - len(pending)
            pending += [run.remote(task, work_there) for task in islice(tasks, max(0, room))]
            if not pending:
                return
            done, pending = ray.wait(pending, num_returns=1)
            yield record_of(ray.get(done[0]))
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


Outcome = Record | bytes


def outcome(task: Task, work: Work) -> Outcome:
    """What a task in another process ends with: its record, or a pickled error."""
    try:
        return run_task(task, work)
    except Exception as error:
        return _pickled(error)


def record_of(outcome: Outcome) -> Record:
    """The record; raises the error again if there is one, with the other process's traceback as its cause."""
    if isinstance(outcome, Record):
        return outcome
    error, text = pickle.loads(outcome)
    raise error from WorkerError(f"in the worker:\n{text}")


def _pickled(error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)  # some can be written, but not read again
    except Exception:
        return pickle.dumps((WorkerError(f"{type(error).__name__}: {error}"), text))
    return data
