"""Who runs the tasks: this process, processes of this machine, or a Ray cluster. All write the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Literal

from .processes import run_in_processes
from .ray_cluster import run_on_ray
from .record import Record
from .task import Task, Work, run_task

Engine = Literal["local", "ray"]
Runner = Callable[[Iterator[Task], Work], Generator[Record, None, None]]
"""Records come as the tasks end, in whatever order; the first error ends the run, and so does closing it."""


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
