"""What a process and all that it has started use, by psutil; waiting until they are idle; how steady the machine is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import psutil  # type: ignore[import-untyped]

from ..rounds import rounded

WINDOW, BUSY = 0.1, 0.2  # seconds, and the share of one core from which on a process tree is not idle
PATIENCE = 10.0


Usage = dict[str, float]
GROWING = ("cpu", "from_storage", "by_read")


def usage() -> Usage:
    """What this process and its descendants use. A process that ends meanwhile is left out.

    cpu: seconds in user and in kernel mode, those of ended children included. memory: bytes in RAM now, a page that
    several share counted once (PSS). peak: the sum of the processes' peaks, with shared pages in each (RSS).
    from_storage: bytes that were not in the page cache. by_read: bytes that read() gave, from files, pipes and sockets
    (a memory-mapped file is in neither, unless it came from storage).
    """
    total: Usage = dict.fromkeys(("cpu", "memory", "peak", "from_storage", "by_read"), 0)
    for process in process_tree():
        with suppress(psutil.Error, OSError), process.oneshot():
            times, files = process.cpu_times(), process.io_counters()
            found = {"memory": process.memory_full_info().pss, "peak": _peak(process.pid), "cpu": sum(times[:4])}
            found |= {"from_storage": files.read_bytes, "by_read": files.read_chars}
            total = {key: total[key] + found[key] for key in total}
    return total


def used_between(before: Usage, now: Usage) -> Usage:
    """What has grown since `before`, and the memory as it is."""
    return {key: now[key] - before[key] if key in GROWING else now[key] for key in now}


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
    total = 0.0
    for process in process_tree():
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def noise_works() -> dict[str, Callable[[], object]]:
    """A tenth of a second of arithmetic and of memory traffic, on one core."""
    text, array = bytes(64 << 20), np.ones(16 << 20, np.float32)
    return {
        "arithmetic": lambda: hashlib.blake2b(text).digest(),
        "memory": lambda: [array.copy() for _ in range(4)],
    }


class Noise:
    """How steady the machine is: seconds of the same work, once a round."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._works, self._clock = noise_works(), clock
        self.seconds: dict[str, list[float]] = {name: [] for name in self._works}

    def measure(self) -> None:
        for name, work in self._works.items():
            begin = self._clock()
            work()
            self.seconds[name].append(rounded(self._clock() - begin))

    def to_dict(self) -> dict[str, object]:
        """spread: (most - least) / least, 0 on a quiet machine."""
        return {
            name: {"seconds": values, "spread": rounded(max(values) / min(values) - 1) if values else 0.0}
            for name, values in self.seconds.items()
        }
