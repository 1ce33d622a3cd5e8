"""What is found here, for `fdt-pipeline doctor`: facts first, then what follows from them."""

from __future__ import annotations

import platform
import shlex
import subprocess
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata

from fdt_pipeline import dali
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT, cache
from fdt_pipeline.native.gpu_check import check_operators
from fdt_pipeline.native.load import driver_version, nvrtc_path, require_usable
from fdt_pipeline.native.recipe import check_level, find_compiler, find_headers, operator_recipe

Facts = Mapping[str, object]


def examine(gpu: bool = False) -> dict[str, Facts]:
    """Every finding by its name; each has "text", the lines that a person reads, and values for a program.

    gpu: compare the operators on the GPU with the definition as well, which builds them if need be. ValueError where an
    environment variable has a wrong value.
    """
    check_level()
    parts = {
        "switch": _switch,
        "Python": _python,
        "DALI": _dali,
        "compiler": _compiler,
        "headers": _headers,
        "GPU": _gpu,
        "NVRTC": _nvrtc,
        "CPU": _cpu,
        "cache": _cache,
        "library": _library,
    }
    findings = {name: _facts(look) for name, look in parts.items()}
    findings["engine"] = _engine(findings)
    return {**findings, "GPU check": _gpu_check(findings["GPU"])} if gpu else findings


def is_usable(findings: Mapping[str, Facts]) -> bool:
    """Whether FDTLoader will take the native engine on the CPU, and the GPU has passed its check, if asked for."""
    return findings["engine"]["cpu"] == "native" and bool(findings.get("GPU check", {"passed": True})["passed"])


def report(findings: Mapping[str, Facts]) -> str:
    """A line for every finding; further lines are indented below the first."""
    width = max(map(len, findings)) + 2
    return "\n".join(
        name.ljust(width) + str(facts["text"]).replace("\n", "\n" + " " * width) for name, facts in findings.items()
    )


def _facts(look: Callable[[], Facts]) -> Facts:
    try:
        return {"found": True, **look()}
    except ImportError as problem:  # NativeUnavailable too; the way out of most messages is this report
        text = str(problem).removesuffix(WAY_OUT).rstrip("; ")
        return {"found": False, "text": f"none: {text}"}


def _switch() -> Facts:
    require_usable()
    return {"text": "on"}


def _python() -> Facts:
    numpy, torch = metadata.version("numpy"), metadata.version("torch")
    return {"text": f"{platform.python_version()}, NumPy {numpy}, torch {torch}"}


def _dali() -> Facts:
    version, wheels = dali.version(), dali.installed_wheels()
    return {"text": f"{version} ({', '.join(wheels) or 'not from a wheel'})", "version": version, "wheels": wheels}


def _compiler() -> Facts:
    command = find_compiler()
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    return {"text": f"{shlex.join(command)}: {said.partition(chr(10))[0]}", "command": shlex.join(command)}


def _headers() -> Facts:
    folders = [str(folder) for folder in find_headers()]
    return {"text": "\n".join(folders), "folders": folders}


def _gpu() -> Facts:
    """Initialises CUDA in this process (which must then not fork to use it)."""
    version = driver_version()
    if version is None:
        raise ImportError("no NVIDIA driver: libcuda.so.1 is not here")
    import torch  # here, as it takes a second

    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that does not start
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        reasons = "; ".join(str(warning.message) for warning in said) or f"torch {torch.__version__} sees no GPU"
        raise ImportError(f"{reasons}; the driver is for CUDA {version}")
    gpus = [
        "{}, compute capability {}.{}".format(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i))
        for i in range(count)
    ]
    return {"text": "\n".join([*gpus, f"driver for CUDA {version}"]), "gpus": gpus, "cuda": version}


def _nvrtc() -> Facts:
    path = nvrtc_path()
    if path is None:
        raise ImportError("only a GPU needs it: pip install nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12 for CUDA 12")
    return {"text": path, "path": path}


def _cpu() -> Facts:
    cores = available_cpus()
    return {"text": f"{platform.machine()}, {cores} {'core' if cores == 1 else 'cores'}", "cores": cores}


def _cache() -> Facts:
    folder = cache.cache_folder()
    problem = cache.why_not_writable(folder)
    used = folder if problem is None else cache.temporary_folder()
    text = f"{folder}, " + ("writable" if problem is None else f"not writable ({problem})\nbuilds go to {used}")
    return {"text": text, "folder": str(folder), "writable": problem is None, "builds_go_to": str(used)}


def _library() -> Facts:
    path = cache.find(operator_recipe().name)
    if path is None:
        return {"text": "not built", "path": None}
    return {"text": f"{path}, {path.stat().st_size / 1e6:.1f} MB", "path": str(path)}


def _engine(findings: Mapping[str, Facts]) -> Facts:
    """Which engine FDTLoader(engine="auto") will take on each device, and why."""
    built = findings["library"].get("path") is not None
    on_cpu = ["switch", "DALI"] if built else ["switch", "DALI", "compiler", "headers"]
    missing = [name for name in on_cpu if not findings[name]["found"]]
    missing_on_gpu = missing + [name for name in ("GPU", "NVRTC") if not findings[name]["found"]]
    reason = "it has been built" if built else "not built yet: that is done at first use, or by fdt-pipeline build"
    cpu = f"torch, see {missing[0]}" if missing else f"native, {reason}"
    cuda = f"none, see {missing_on_gpu[0]}" if missing_on_gpu else "native, compiled by NVRTC"
    return {
        "text": f'device="cpu": {cpu}\ndevice="cuda": {cuda}',
        "cpu": "torch" if missing else "native",
        "cuda": None if missing_on_gpu else "native",
    }


def _gpu_check(gpu: Facts) -> Facts:
    if not gpu["found"]:
        return {"text": "not run: no GPU", "passed": False}
    try:
        return {"text": f"passed: {check_operators()}", "passed": True}
    except Exception as problem:  # DALI's errors are RuntimeErrors of any kind
        return {"text": f"FAILED: {problem}", "passed": False}
