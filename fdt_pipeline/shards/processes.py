"""Tasks in processes of this machine, each at the end of a pipe of its own.

Not concurrent.futures: there, a worker whose parent was killed waits for ever, and a run that is broken off waits for
tasks that nobody wants any more.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from types import ModuleType
from typing import Any

from .errors import WorkerError
from .outcome import outcome, record_of
from .record import Record
from .task import Task, Work

# Spawned, not forked: a process that has run threads (NumPy's, torch's) cannot be forked safely. 0.2 s each.
_processes = multiprocessing.get_context("spawn")


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
    """What is started here never sees Ctrl-C, not even while it imports: the parent does, and ends it."""
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
    """Until the other end is closed."""
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(outcome(connection.recv(), work))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """At once, in the middle of a task: whoever goes on with the run must not find somebody still writing to it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
