"""What is found here, for `fdt-pipeline doctor`: facts first, then what follows from them."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version

from fdt_pipeline import dali
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT
from fdt_pipeline.native.build import cache_folder, find, temporary_folder
from fdt_pipeline.native.gpu_check import check_operators
from fdt_pipeline.native.load import driver_version, nvrtc_path, require_usable
from fdt_pipeline.native.recipe import check_level, find_compiler, find_headers, operator_recipe

Finding = Mapping[str, object]  # found: whether it is there; text: the lines that a person reads


def examine(gpu: bool = False) -> dict[str, Finding]:
    """Every finding by its name.

    gpu: compare the operators on the GPU with the definition as well, which builds them if need be. ValueError where an
    environment variable has a wrong value.
    """
    check_level()
    parts = {
        "switch": _switch,
        "Python": lambda: f"{platform.python_version()}, NumPy {version('numpy')}, torch {version('torch')}",
        "DALI": lambda: f"{dali.version()} ({', '.join(dali.installed_wheels()) or 'not from a wheel'})",
        "compiler": _compiler,
        "headers": lambda: "\n".join(map(str, find_headers())),
        "GPU": _gpu,
        "NVRTC": _nvrtc,
        "CPU": lambda: f"{platform.machine()}, cores: {available_cpus()}",
        "cache": _cache,
        "library": _library,
    }
    findings = {name: _finding(look) for name, look in parts.items()}
    findings["engine"] = _engine(findings)
    return {**findings, "GPU check": _gpu_check(findings["GPU"])} if gpu else findings


def is_usable(findings: Mapping[str, Finding]) -> bool:
    """Whether FDTLoader will take the native engine on the CPU, and the GPU has passed its check, if asked for."""
    return findings["engine"]["cpu"] == "native" and bool(findings.get("GPU check", {"found": True})["found"])


def report(findings: Mapping[str, Finding]) -> str:
    """A line for every finding; further lines are indented below the first."""
    width = max(map(len, findings)) + 2
    return "\n".join(
        name.ljust(width) + str(finding["text"]).replace("\n", "\n" + " " * width) for name, finding in findings.items()
    )


def _finding(look: Callable[[], str]) -> Finding:
    try:
        return {"found": True, "text": look()}
    except ImportError as problem:  # NativeUnavailable too; the way out of most messages is this report
        text = str(problem).removesuffix(WAY_OUT).rstrip("; ")
        return {"found": False, "text": f"none: {text}"}


def _switch() -> str:
    require_usable()
    return "on"


def _compiler() -> str:
    command = find_compiler()
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{shlex.join(command)}: {said.partition(chr(10))[0]}"


def _gpu() -> str:
    """Initialises CUDA in this process (which must then not fork to use it)."""
    driver = driver_version()
    if driver is None:
        raise ImportError("no NVIDIA driver: libcuda.so.1 is not here")
    import torch  # here, as it takes a second

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # warns of a driver that does not start
    if count == 0:
        raise ImportError(f"torch {torch.__version__} sees no GPU; the driver is for CUDA {driver}")
    gpus = [
        "{}, compute capability {}.{}".format(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i))
        for i in range(count)
    ]
    return "\n".join([*gpus, f"driver for CUDA {driver}"])


def _nvrtc() -> str:
    path = nvrtc_path()
    if path is None:
        raise ImportError("only a GPU needs it: pip install nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12 for CUDA 12")
    return path


def _cache() -> str:
    folder = cache_folder()
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ImportError(f"{folder} cannot be written to\nbuilds go to {temporary_folder()}")
    return f"{folder}, writable"


def _library() -> str:
    path = find(operator_recipe().name)
    if path is None:
        raise ImportError("not built yet: that is done at first use, or by fdt-pipeline build")
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


def _engine(findings: Mapping[str, Finding]) -> Finding:
    """Which engine FDTLoader(engine="auto") will take on each device, and why."""
    on_cpu = ["switch", "DALI", *([] if findings["library"]["found"] else ["compiler", "headers"])]
    missing = [name for name in on_cpu if not findings[name]["found"]]
    missing_on_gpu = missing + [name for name in ("GPU", "NVRTC") if not findings[name]["found"]]
    cpu = f"torch, see {missing[0]}" if missing else "native"
    cuda = f"none, see {missing_on_gpu[0]}" if missing_on_gpu else "native, compiled by NVRTC"
    return {
        "found": True,
        "text": f'device="cpu": {cpu}\ndevice="cuda": {cuda}',
        "cpu": "torch" if missing else "native",
        "cuda": None if missing_on_gpu else "native",
    }


def _gpu_check(gpu: Finding) -> Finding:
    if not gpu["found"]:
        return {"found": False, "text": "not run: no GPU"}
    try:
        return {"found": True, "text": f"passed: {check_operators()}"}
    except Exception as problem:  # DALI's errors are RuntimeErrors of any kind
        return {"found": False, "text": f"FAILED: {problem}"}
