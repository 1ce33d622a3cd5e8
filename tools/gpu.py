"""The verb `gpu`: the tests that need a GPU and what is measured on one, in nine minutes, each stage on its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fdt_pipeline.cli import verb_parser

from .rounds import table

_DESCRIPTION = """Test the loader and the operators on this machine's GPU, and measure them there.

Every stage is a process with a limit: what crashes or hangs costs no other, and keeps what it has found. OUT/gpu.json
and OUT/gpu.md are written after every stage. Exit code 1 if a stage or a test fails."""
_EXAMPLE = """example:
  python -m tools gpu runs/gpu
  python -m tools gpu runs/gpu --device cpu --stages loaders epochs"""
TOTAL = 530.0  # seconds; with the imports before them, nine minutes
LIMITS = {"doctor": 60, "loader-tests": 150, "kernel-tests": 60}
LIMITS |= {
    "loaders": 90,
    "decoding": 80,
    "host": 30,
    "epochs": 40,
    "training": 90,
    "kernel": 50,
    "steps": 110,
}  # gpu_stages.py
TAIL = 150  # lines
ROOT = Path(__file__).parents[1]


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "gpu", "test and measure the loader on a GPU", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--stages", nargs="+", choices=tuple(LIMITS), default=list(LIMITS), help="some of them alone")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try it out, at tiny sizes")
    parser.add_argument("--commit", help="noted where this is no git checkout")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch  # not for the other verbs

    from train.environment import hardware, versions
    from train.files import write_json, write_text

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here: --device cpu tries the command out")
    used = versions()
    own_commit = used.pop("commit")
    record: dict[str, Any] = {
        "commit": arguments.commit or own_commit or "unknown",
        "hardware": hardware(torch.device(arguments.device)),
        "versions": used,
        "stages": {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.stages:
            print(f"{name} ..", file=sys.stderr, flush=True)
            limit = min(LIMITS[name], begin + TOTAL - time.monotonic())
            command, found = (
                [sys.executable, "-m", *_module(name, arguments.device, folder)],
                Path(folder, f"{name}.jsonl"),
            )
            late = {"status": "not run", "seconds": 0.0, "tail": ["no time was left"]}
            record["stages"][name] = run_stage(command, limit, found) if limit > 0 else late
            write_json(arguments.out / "gpu.json", record)
            write_text(arguments.out / "gpu.md", report(record) + "\n")
    print(report(record))
    return 1 if any(stage["status"] != "done" for stage in record["stages"].values()) else 0


def _module(name: str, device: str, folder: str) -> list[str]:
    """What `python -m` runs. Tests of the loader one by one: the memory that they look at is the whole GPU's."""
    on_gpu = device == "cuda"
    tests = ["pytest", "-v", "--tb=short", "-m", "", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
    others = {
        "doctor": ["tools", "doctor", *(["--gpu"] if on_gpu else [])],
        "loader-tests": [
            *tests,
            "-n0",
            "-k",
            "cuda and not cpu" if on_gpu else "cpu",
            "tests/fdt_pipeline/test_gpu_loader.py",
        ],
        "kernel-tests": [*tests, "-k", "real" if on_gpu else "emulated", "tests/fdt_pipeline/test_native_gpu.py"],
    }
    return others.get(name) or ["tools.gpu_stages", name, device, folder]


def run_stage(command: Sequence[str], limit: float, found: Path) -> dict[str, Any]:
    """A process, for at most `limit` seconds, and what it has left in the file `found` by then.

    status: "done", "timed out" or "exit code 1", say. tail: the end of what it has printed.
    """
    begin, log = time.monotonic(), found.with_suffix(".log")
    with log.open("w") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            code = process.wait(max(0.0, limit))
            status = f"exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            with suppress(ProcessLookupError):  # with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    stage: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    for line in found.read_text().splitlines() if found.exists() else ():
        for section, values in json.loads(line).items():
            stage.setdefault(section, {}).update(values)
    return stage | {"tail": log.read_text(errors="replace").splitlines()[-TAIL:]}


def report(record: dict[str, Any]) -> str:
    """The figures against their bounds, how the stages went, and their notes, as Markdown."""
    return "\n".join(_lines(record))


def _lines(record: dict[str, Any]) -> Iterator[str]:
    machine, versions = record["hardware"], {name: text for name, text in record["versions"].items() if text}
    yield f"{machine.get('gpu', 'no GPU')}, {machine['cores']} cores of {machine['cpu']}; commit {record['commit']}"
    yield f"({', '.join(f'{name} {text}' for name, text in versions.items())})"
    yield ""
    stages = record["stages"]
    yield table([row for stage in stages.values() for row in stage.get("rows", {}).values()], "figure")
    yield ""
    for name, stage in stages.items():
        yield f"* {name}: {stage['status']}, {stage['seconds']:g} s"
        yield from (f"  * {key}: {value}" for key, value in stage.get("notes", {}).items())
        if stage["status"] != "done" or "rows" not in stage:
            yield from (f"  * `{line}`" for line in stage["tail"][-1:])
