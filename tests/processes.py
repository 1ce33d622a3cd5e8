"""Programs that tests run as users do, each in a process of its own."""

import os
import subprocess
import sys


def run_python(*arguments, ranks=None, folder=None, **variables):
    """-> (stdout, stderr) of `python ARGUMENTS`, or of torchrun with that many ranks; it must succeed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    process = subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=590)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks then
        raise
    assert process.returncode == 0, errors
    return output, errors
