"""What a process and all that it has started use, as Linux counts it in /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of a tree of processes. cpu: seconds, in user and in kernel mode, of those too that have ended and were waited
    for. memory: bytes in RAM now, a page that several share counted once (PSS). peak: the sum of the processes' peaks,
    shared pages in each (RSS). from_storage: bytes that were not in the page cache; by_read: bytes that read() gave,
    from files, pipes and sockets (what is memory-mapped is in neither, unless it came from storage)."""

    cpu: float
    memory: int
    peak: int
    from_storage: int
    by_read: int

    def since(self, before: Usage) -> dict[str, Any]:
        """What has grown since, and the memory as it is."""
        grown = {key: getattr(self, key) - getattr(before, key) for key in ("cpu", "from_storage", "by_read")}
        return {**asdict(self), **grown}


def usage_of(pid: int) -> Usage:
    """A process that ends meanwhile is left out."""
    cpu, memory, peak, from_storage, by_read = 0.0, 0, 0, 0, 0
    for process in tree_of(pid):
        cpu += _cpu(process)
        memory += 1024 * _field(process / "smaps_rollup", "Pss:")
        peak += 1024 * _field(process / "status", "VmHWM:")
        from_storage += _field(process / "io", "read_bytes:")
        by_read += _field(process / "io", "rchar:")
    return Usage(cpu, memory, peak, from_storage, by_read)


def cpu_of(pid: int) -> float:
    return sum(map(_cpu, tree_of(pid)))


def tree_of(pid: int) -> Iterator[Path]:
    """/proc/PID of the process and of its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(folder)):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for process in found:
        found += children.get(process, [])
        yield Path("/proc", str(process))


def _cpu(process: Path) -> float:
    """utime, stime, cutime, cstime."""
    return sum(map(int, _stat(process)[11:15])) / _TICKS


def _stat(process: Path) -> list[str]:
    """From the third field on, the state: the name before it may hold blanks. Empty where the process has ended."""
    return _read(process / "stat").rpartition(")")[2].split()


def _field(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _read(path).splitlines() if line.startswith(name)), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
