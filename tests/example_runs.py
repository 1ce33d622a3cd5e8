"""Running the examples as users do, each in a process of its own."""

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Example:
    """What an example printed: the loss of each step, and the accuracy, if it gave one."""

    losses: dict[int, float]
    accuracy: float | None


def run_example(name, shards, folder, *arguments, ranks=None):
    """Run it in `folder`, under torchrun where `ranks` says how many; it must succeed, with no warning of ours."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    command = [sys.executable, *launcher, EXAMPLES / f"{name}.py", shards, *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks then
        raise
    assert process.returncode == 0, errors
    assert not re.findall(r"^.*/(?:fdt_pipeline|examples)/.*Warning.*$", errors, re.MULTILINE)
    return _read(output)


def _read(output):
    steps = [(int(step), float(loss)) for step, loss in re.findall(r"^step (\d+): loss (\S+)", output, re.MULTILINE)]
    losses = dict(steps)
    assert len(losses) == len(steps), "a step was printed twice"
    assert all(math.isfinite(loss) for loss in losses.values())
    found = re.findall(r"^accuracy (\S+)$", output, re.MULTILINE)
    assert len(found) <= 1
    assert all(0 <= float(accuracy) <= 1 for accuracy in found)
    return Example(losses, float(found[0]) if found else None)
