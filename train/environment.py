"""Where numbers come from: versions and hardware, for results.json; and what has to be installed."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.dali import installed_wheels
from fdt_pipeline.machine import available_cpus

PACKAGES = ("torchvision", "numpy", "webdataset")


def versions(*others: str) -> dict[str, str | None]:
    """Version of each package and of `others` (None if absent), of Python, and the commit in a git checkout."""
    found: dict[str, str | None] = {"commit": _commit(), "python": platform.python_version()}
    found["torch"] = str(torch.__version__)  # with the CUDA version, which the distribution's metadata leaves out
    for name in (*PACKAGES, *others, *installed_wheels()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": available_cpus(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def need(what_needs: str, extra: str, *modules: str) -> None:
    """ImportError that names the first module which is not installed, and the extra that brings it."""
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{what_needs} {error.name}: pip install -e ".[{extra}]", beside the extras of this installation'
        ) from error


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """The checkout's commit, with "-dirty" where tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
