"""What is found here, for `fdt-pipeline doctor`: facts first, then what follows from them."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata

from fdt_pipeline import dali
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native import WAY_OUT, NativeUnavailable, cache, processor
from fdt_pipeline.native.build import Availability, availability
from fdt_pipeline.native.driver import Driver, Nvrtc, find_driver, find_nvrtc
from fdt_pipeline.native.gpu_check import check_operators
from fdt_pipeline.native.toolchain import find_compiler, find_headers

Facts = Mapping[str, object]


def examine(gpu: bool = False) -> dict[str, Facts]:
    """Every finding by its name; each has "text", the line that a person reads, and values for a program.

    gpu: compare the operators on the GPU with the definition as well, which builds them if need be.
    """
    native, driver, nvrtc = availability(), find_driver(), find_nvrtc()
    findings = {
        "Python": _python(),
        "DALI": _dali(),
        "compiler": _compiler(),
        "headers": _headers(),
        "GPU": _gpu(driver),
        "NVRTC": _nvrtc(nvrtc),
        "CPU": _cpu(),
        "cache": _cache(),
        "library": _library(native),
    }
    findings["engine"] = _engine(native, _why(native, findings), driver, nvrtc)
    return {**findings, "GPU check": _gpu_check(driver)} if gpu else findings


def _why(native: Availability, findings: Mapping[str, Facts]) -> str:
    """The reason, or the line above that has it."""
    reason = _without_way_out(native.reason)
    above = next((name for name, facts in findings.items() if reason in str(facts["text"])), None)
    return reason if above is None else f"see {above}"


def _without_way_out(problem: object) -> str:
    """The way out of most messages is this report."""
    return str(problem).removesuffix(f"; {WAY_OUT}").removesuffix(WAY_OUT).rstrip()


def is_usable(findings: Mapping[str, Facts]) -> bool:
    """Whether FDTLoader will take the native engine on the CPU, and the GPU has passed its check, if asked for."""
    return findings["engine"]["cpu"] == "native" and bool(findings.get("GPU check", {"passed": True})["passed"])


def report(findings: Mapping[str, Facts]) -> str:
    """A line for every finding; long ones are indented below their name."""
    width = max(map(len, findings))
    return "\n".join(_line(name.ljust(width), str(facts["text"])) for name, facts in findings.items())


def _line(name: str, text: str) -> str:
    return f"{name}  " + text.replace("\n", "\n" + " " * (len(name) + 2))


def _python() -> Facts:
    torch = _version("torch")
    text = f"{platform.python_version()}, NumPy {_version('numpy')}, torch {torch or 'none'}"
    return {"text": text, "version": platform.python_version(), "torch": torch, "numpy": _version("numpy")}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _dali() -> Facts:
    try:
        version = dali.version()
    except ImportError as problem:
        return {"text": f"none: {problem}", "version": None, "wheels": dali.installed_wheels()}
    wheels = dali.installed_wheels()
    return {"text": f"{version} ({', '.join(wheels) or 'not from a wheel'})", "version": version, "wheels": wheels}


def _compiler() -> Facts:
    try:
        compiler = find_compiler()
    except NativeUnavailable as problem:
        return {"text": f"none: {_without_way_out(problem)}", "command": None, "version": None}
    command = shlex.join(compiler.command)
    return {"text": f"{command}: {compiler.title}", "command": command, "version": compiler.title}


def _headers() -> Facts:
    try:
        headers = find_headers()
    except NativeUnavailable as problem:
        return {"text": f"none: {_without_way_out(problem)}", "version": None, "folders": []}
    folders = [str(folder) for folder in headers.folders]
    return {"text": "\n".join([f"CUDA {headers.version}", *folders]), "version": headers.version, "folders": folders}


def _gpu(driver: Driver) -> Facts:
    lines = [f"{gpu.name}, compute capability {gpu.capability}" for gpu in driver.gpus]
    if driver.cuda:
        lines.append(f"driver for CUDA {driver.cuda}")
    if driver.problem:
        lines.insert(0, f"none: {driver.problem}")
    return {"text": "\n".join(lines), **asdict(driver)}


def _nvrtc(nvrtc: Nvrtc | None) -> Facts:
    if nvrtc is None:
        text = (
            "none (only a GPU needs it): pip install nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12 for a CUDA 12 driver"
        )
        return {"text": text, "path": None, "version": None}
    return {"text": f"{nvrtc.version}\n{nvrtc.path}", **asdict(nvrtc)}


def _cpu() -> Facts:
    level, cores = processor.level(), available_cpus()
    name = f"x86-64-{level}" if platform.machine() == "x86_64" else f"{platform.machine()}, {level}"
    text = f"{name if level else 'below x86-64-v2'}, {cores} {'core' if cores == 1 else 'cores'}"
    return {"text": text, "level": level, "cores": cores}


def _cache() -> Facts:
    folder = cache.cache_folder()
    problem = cache.why_not_writable(folder)
    used = folder if problem is None else cache.temporary_folder()
    text = f"{folder}, " + ("writable" if problem is None else f"not writable ({problem})\nbuilds go to {used}")
    return {"text": text, "folder": str(folder), "writable": problem is None, "builds_go_to": str(used)}


def _library(native: Availability) -> Facts:
    if native.library is None:
        return {"text": "not built", "path": None, "bytes": None}
    size = native.library.stat().st_size
    return {"text": f"{native.library}, {size / 1e6:.1f} MB", "path": str(native.library), "bytes": size}


def _engine(native: Availability, why: str, driver: Driver, nvrtc: Nvrtc | None) -> Facts:
    """Which engine FDTLoader(engine="auto") will take on each device, and why."""
    cpu = "native" if native else "torch"
    cuda, why_on_gpu = _engine_on_gpu(native, driver, nvrtc)
    text = f'device="cpu": {cpu}, {why}\ndevice="cuda": {cuda or "none"}, {why_on_gpu}'
    return {"text": text, "cpu": cpu, "cuda": cuda, "reason": native.reason}


def _engine_on_gpu(native: Availability, driver: Driver, nvrtc: Nvrtc | None) -> tuple[str | None, str]:
    if not driver.gpus:
        return None, "no GPU"
    if not native:
        return None, "for the same reason"
    if nvrtc is None:
        return None, "as NVRTC is missing"
    return "native", f"compiled by NVRTC {nvrtc.version} for compute capability {driver.gpus[0].capability}"


def _gpu_check(driver: Driver) -> Facts:
    if not driver.gpus:
        return {"text": "not run: no GPU", "passed": False}
    try:
        return {"text": f"passed: {check_operators()}", "passed": True}
    except Exception as problem:  # DALI's errors are RuntimeErrors of any kind
        return {"text": f"FAILED: {problem}", "passed": False}
