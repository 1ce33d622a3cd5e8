"""Tasks on a Ray cluster that is running already: one Ray task a shard, started again elsewhere when a node dies.

Every node must have this package, and see SOURCE and OUT: a folder that is shared, or an fsspec URL.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

from .outcome import outcome, record_of
from .record import Record
from .task import Task, Work

# A node may die at any time, and take more than one task with it; errors of the task itself are not tried again.
MAX_RETRIES = 20
_AHEAD = 2  # tasks a CPU that are handed to Ray: enough that none waits, few enough to hold in memory


def run_on_ray(tasks: Iterator[Task], work: Work) -> Generator[Record, None, None]:
    """On the cluster that this process is connected to, or that $RAY_ADDRESS or the machine's own Ray names."""
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
