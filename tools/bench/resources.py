"""What a process and all that it has started use, by psutil; and waiting until they are idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

WINDOW, BUSY = 0.1, 0.2  # seconds, and the share of one core from which on a process tree is not idle
PATIENCE = 10.0


@dataclass(frozen=True)
class Usage:
    """What a tree of processes uses.

    cpu: seconds in user and in kernel mode, those of ended children included. memory: bytes in RAM now, a page that
    several share counted once (PSS). peak: the sum of the processes' peaks, with shared pages in each (RSS).
    from_storage: bytes that were not in the page cache. by_read: bytes that read() gave, from files, pipes and sockets
    (a memory-mapped file is in neither, unless it came from storage).
    """

    cpu: float
    memory: int
    peak: int
    from_storage: int
    by_read: int

    def since(self, before: Usage) -> dict[str, Any]:
        """What has grown since `before`, and the memory as it is."""
        grown = {key: getattr(self, key) - getattr(before, key) for key in ("cpu", "from_storage", "by_read")}
        return {**asdict(self), **grown}


def usage() -> Usage:
    """What this process and its descendants use. A process that ends meanwhile is left out."""
    cpu, memory, peak, from_storage, by_read = 0.0, 0, 0, 0, 0
    for process in process_tree():
        try:
            with process.oneshot():
                times, files = process.cpu_times(), process.io_counters()
                pss, highest = process.memory_full_info().pss, _peak(process.pid)
        except (psutil.Error, OSError):
            continue
        cpu += times.user + times.system + times.children_user + times.children_system
        memory, peak = memory + pss, peak + highest
        from_storage, by_read = from_storage + files.read_bytes, by_read + files.read_chars
    return Usage(cpu, memory, peak, from_storage, by_read)


def process_tree() -> list[psutil.Process]:
    """This process and its descendants."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _peak(pid: int) -> int:
    """The largest resident size of a process so far, which psutil does not know on Linux."""
    with open(f"/proc/{pid}/status") as file:
        return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)


def wait_until_idle(patience: float = PATIENCE) -> bool:
    """Wait until this process and its descendants have filled their queues; False if they never rest."""
    end = time.monotonic() + patience
    before = _cpu_seconds()
    while time.monotonic() < end:
        time.sleep(WINDOW)
        now = _cpu_seconds()
        if now - before <= WINDOW * BUSY:
            return True
        before = now
    return False


def _cpu_seconds() -> float:
    return sum(_seconds_of_each())


def _seconds_of_each() -> Iterator[float]:
    for process in process_tree():
        try:
            yield sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
