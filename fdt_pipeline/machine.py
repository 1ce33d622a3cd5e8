"""What this process may use of the machine: CPUs and memory, within its affinity and its control groups (cgroups).

A limit may stand at any level of a cgroup's path, and the smallest counts: Slurm sets it above the process's own level,
Docker and Kubernetes at the root that the container sees. Both versions are read where systemd mounts them, v2 (one
tree) and v1 (one for each controller). `root` is another root of /proc and /sys, for tests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process may keep busy: those of its affinity, and at most its cgroups' quota, rounded up."""
    quota = min(map(_quota, _groups("cpu", root)), default=math.inf)
    return math.ceil(min(len(os.sched_getaffinity(0)), quota))


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process may still take. The page cache counts as free where the kernel can reclaim it."""
    lines = _text(root / "proc/meminfo").splitlines()
    [host] = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")] or [_host_free()]
    within = min(map(_memory_free, _groups("memory", root)), default=math.inf)
    return max(0, int(min(host, within)))


def total_memory(root: Path = _ROOT) -> int:
    """Bytes of the machine, or of the smallest limit of the process's cgroups."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(host, min(map(_memory_limit, _groups("memory", root)), default=math.inf)))


def _host_free() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _quota(group: Path) -> float:
    """CPUs' worth of time; inf where there is no limit."""
    if v2 := _text(group / "cpu.max").split():
        quota, period = v2
    else:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return math.inf if quota in ("", "max", "-1") else int(quota) / int(period)


def _memory_limit(group: Path) -> float:
    limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
    return math.inf if limit.strip() in ("", "max") else int(limit)


def _memory_free(group: Path) -> float:
    """The limit less what is used and cannot be reclaimed. As in MemAvailable the page cache can, also the part that
    was read twice (active): after an epoch all shards are in it. Shared memory (tmpfs) is neither."""
    used = int(_text(group / "memory.current") or _text(group / "memory.usage_in_bytes") or 0)
    stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    files = ("inactive_file", "active_file")  # in v1 "total_" counts children, too, which v2 does in any case
    reclaimable = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in files)
    return _memory_limit(group) - max(0, used - reclaimable)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's cgroups that may limit it, each from its own level up to the root.

    In a container the root is what limits it. The path may lie outside of what is mounted there, as it may be the
    host's: levels that are not there limit nothing.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):  # v2's line names none
            top, own = root / "sys/fs/cgroup" / (controller if controllers else ""), PurePosixPath(path.lstrip("/"))
            yield from (top / level for level in (own, *own.parents) if ".." not in level.parts)


def _text(path: Path) -> str:
    """Empty where it cannot be read: a root cgroup has no limits, and not every system has cgroups."""
    try:
        return path.read_text()
    except OSError:
        return ""
