"""Small sources with the native ones' names, a compiler that logs its runs, and processes that build with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

KERNEL = """\
#include "answer.h"
namespace FDT_ISA { int answer() { return kAnswer; } }
"""
CORE = """\
#include "answer.h"
extern "C" __attribute__((visibility("default"))) int fdt_answer() { return kAnswer; }
"""
PATIENCE = 120  # seconds, for processes that should end by themselves
ROOT = Path(__file__).parents[1]


def write_sources(folder, answer=42, operators="int operators_are_here;\n"):
    """A folder with kernel.cc, pool_api.cc, operators.cc (without DALI) and answer.h; a third of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"kernel.cc": KERNEL, "pool_api.cc": CORE, "operators.cc": operators}
    for name, text in {**files, "answer.h": f"#pragma once\nconstexpr int kAnswer = {answer};\n"}.items():
        (folder / name).write_text(text)
    return folder


class LoggingCompiler:
    """A script that logs its process id and arguments, runs `first`, and then becomes g++."""

    def __init__(self, folder, first=""):
        folder.mkdir()
        self.path, self.log = folder / "g++", folder / "log"
        self.log.touch()
        gcc = shutil.which("g++")
        trial = f'case "$*" in *-fsyntax-only*) exec {gcc} "$@";; esac'  # whether it is new enough
        self.path.write_text(f'#!/bin/sh\n{trial}\necho $$ $* >> {self.log}\n{first}\nexec {gcc} "$@"\n')
        self.path.chmod(0o755)

    def runs(self):
        """(process id, arguments) of every run so far but the trials."""
        words = [line.split() for line in self.log.read_text().splitlines()]
        return [(int(first), rest) for first, *rest in words]

    def num_links(self):
        return sum("-shared" in arguments for _, arguments in self.runs())


def start(code, **environment):
    """A Python process that runs code with the checkout at hand; `environment` replaces variables."""
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # as a shell does: a Ctrl-C reaches it and its compilers, and not these tests
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )


def building(sources):
    """Code that builds the core of these sources and prints its path."""
    return f"""
from pathlib import Path
from fdt_pipeline.native.build import obtain
from fdt_pipeline.native.recipe import core_recipe

print(obtain(core_recipe(csrc=Path({str(sources)!r}))).path)
"""


def at_once(count, code, **environment):
    """(stdout, stderr) of processes that all have imported the package before any of them runs the code."""
    wait = "import fdt_pipeline.native.build\nprint('ready', flush=True)\ninput()\n"
    processes = [start(wait + code, **environment) for _ in range(count)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * count
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=PATIENCE) for process in processes]


def read_only(folder):
    """Code after which Python finds a folder on a file system that is mounted read-only, which holds for root as well.

    No lock may be taken at all.
    """
    return f"""
import os, sys

def refuse(event, arguments):
    assert event not in ("fcntl.lockf", "fcntl.flock"), "a lock was taken"
    if event == "open":
        if not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chmod"):
        return
    if isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith({str(folder)!r}):
        raise OSError(30, "Read-only file system", os.fsdecode(arguments[0]))

sys.addaudithook(refuse)
"""
