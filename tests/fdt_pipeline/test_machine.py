"""CPUs and free memory within a process's cgroups, in made-up trees of /proc and /sys/fs/cgroup."""

import os
from functools import partial

import pytest
import torch

from fdt_pipeline.loader.memory import choose_mode
from fdt_pipeline.machine import available_cpus, available_memory, total_memory

MIB = 2**20


def tree(root, cgroup="", **files):
    """A root with these files of /sys/fs/cgroup, and 1 GiB of memory available by /proc/meminfo."""
    texts = {
        "proc/meminfo": "MemTotal: 2097152 kB\nMemFree: 1024 kB\nMemAvailable: 1048576 kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def v2(limit=None, used=0, inactive=0, active=0):
    """memory.max and so on, in MiB."""
    return {
        "memory.max": "max" if limit is None else f"{limit * MIB}\n",
        "memory.current": f"{used * MIB}\n",
        "memory.stat": f"anon {used * MIB}\nfile {99 * MIB}\nshmem {9 * MIB}\nactive_file {active * MIB}\n"
        f"inactive_file {inactive * MIB}\n",
    }


def v1(limit, used, inactive, active=0):
    return {
        "memory.limit_in_bytes": f"{limit * MIB}\n",
        "memory.usage_in_bytes": f"{used * MIB}\n",
        "memory.stat": f"inactive_file 5\nactive_file 7\ntotal_inactive_file {inactive * MIB}\n"
        f"total_active_file {active * MIB}\n",
    }


def under(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_without_cgroups_linux_says_what_is_available(tmp_path):
    root = tree(tmp_path)
    assert available_memory(root) == 1024 * MIB
    assert available_cpus(root) == 8
    assert total_memory(tmp_path / "nothing") > 0
    assert available_memory(tmp_path / "nothing") > 0


def test_memory_is_the_least_that_any_level_of_the_path_leaves(tmp_path):
    """Slurm limits the job, and not the step's own cgroup."""
    files = under("job", v2(400, 100)) | under("job/step", v2(None, 90)) | under("other", v2(1, 1))
    root = tree(tmp_path, "0::/job/step\n", **files)
    assert available_memory(root) == 300 * MIB
    assert total_memory(root) == 400 * MIB
    nearer = tree(tmp_path, "0::/job/step\n", **under("job/step", v2(150, 90)))
    assert available_memory(nearer) == 60 * MIB
    assert total_memory(nearer) == 150 * MIB


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "active", "free"),
    [(400, 390, 250, 0, 260), (400, 400, 100, 250, 350), (100, 120, 0, 0, 0), (100, 50, 60, 10, 100)],
    ids=[
        "page cache that can be reclaimed is free",
        "read twice",
        "more used than the limit",
        "counted a little later",
    ],
)
def test_what_is_left_of_a_limit_is_free(tmp_path, limit, used, inactive, active, free):
    files = under("a", v2(limit, used, inactive, active))
    assert available_memory(tree(tmp_path / "v2", "0::/a\n", **files)) == free * MIB
    files = under("memory/a", v1(limit, used, inactive, active))
    assert available_memory(tree(tmp_path / "v1", "4:memory:/a\n", **files)) == free * MIB


@pytest.mark.parametrize("files", [{}, {"inactive": 380}, {"active": 380}, {"inactive": 190, "active": 190}])
def test_auto_is_resident_whether_or_not_the_page_cache_is_full_of_shards(tmp_path, monkeypatch, files):
    """A pool of 180 of 400 MiB, in a container that has read them before, or has not."""
    root = tree(tmp_path, "0::/\n", **v2(400, 10 + sum(files.values()), **files))
    monkeypatch.setattr("fdt_pipeline.loader.memory.available_memory", partial(available_memory, root))
    assert choose_mode("auto", 180, (1024, 1024, 1), 0, torch.device("cpu")) == "resident"
    assert choose_mode("auto", 200, (1024, 1024, 1), 0, torch.device("cpu")) == "streaming"


@pytest.mark.parametrize(
    "path",
    [
        "/",  # a cgroup namespace: the process's own cgroup is the root
        "/docker/1f",  # a container that shares the host's names
        "/../other",  # a process of another namespace than its mounts'
    ],
)
def test_a_containers_limit_is_found_at_the_root_that_it_sees(tmp_path, path):
    root = tree(tmp_path, f"0::{path}\n", **v2(300, 100), **{"cpu.max": "150000 100000\n"})
    assert (available_memory(root), total_memory(root)) == (200 * MIB, 300 * MIB)
    assert available_cpus(root) == 2


def test_version_1_has_a_tree_for_each_controller_beside_an_empty_one_of_version_2(tmp_path):
    files = {
        **under("memory", v1(2**43, 500, 0)),
        **under("memory/user", v1(500, 300, 0)),
        **under("cpu/box", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}),
        **under("cpu", {"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}),
    }
    cgroup = "4:memory:/user/a\n3:cpu,cpuacct:/box\n1:name=systemd:/x\n0::/init.scope\n"
    root = tree(tmp_path, cgroup, **files)
    assert (available_memory(root), total_memory(root)) == (200 * MIB, 500 * MIB)
    assert available_cpus(root) == 3


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("max 100000", "max 100000", 8), ("max 100000", "50000 100000", 1), ("250000 100000", "max 100000", 3),
     ("200000 100000", "1000000 250000", 2), ("3200000 100000", "max 100000", 8)],
)  # fmt: skip
def test_a_cpu_quota_counts_rounded_up_and_affinity_where_it_is_less(tmp_path, monkeypatch, outer, inner, expected):
    root = tree(tmp_path, "0::/a/b\n", **{"a/cpu.max": outer, "a/b/cpu.max": inner})
    assert available_cpus(root) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cpus(root) == 1
