"""Is the GPU's kernel right on this machine? Asked in a process of its own, once, before a loader relies on it.

The check (csrc/gpu_check.cc) compares plans, images and targets with the CPU's. A kernel that goes wrong on a GPU can
spoil the CUDA context of its process: so the process is not the user's. A yes is kept in the cache, by library, GPU and
driver; a no is not, as another program may have taken the GPU's memory.

    python -m fdt_pipeline.native.gpu_check [INDEX]     prints what was compared; exit 0 right, 1 wrong
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from pathlib import Path

from fdt_pipeline.native import cache
from fdt_pipeline.native.loading import load, symbols
from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable

_TIME_LIMIT = 300  # seconds; NVRTC takes 0.6 a kernel


def require_checked_gpu(index: int, gpu: str) -> None:
    """NativeUnavailable unless the check of GPU `index` passes, or has passed; gpu: what tells it and its driver."""
    mark = _mark(load(), index, gpu)
    if mark.exists():
        return
    command = [sys.executable, "-m", "fdt_pipeline.native.gpu_check", str(index)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(_refusal(gpu, f"it took more than {_TIME_LIMIT} s")) from None
    if done.returncode:
        raise NativeUnavailable(_refusal(gpu, (done.stdout + done.stderr).strip()[-2000:] or "it was killed"))
    try:
        mark.touch()
    except OSError:  # a cache that cannot be written to: the next process checks again
        return


def _mark(library: Path, index: int, gpu: str) -> Path:
    known = hashlib.sha256(f"{library.name} {index} {gpu}".encode()).hexdigest()[:16]
    return cache.cache_folder() / f"gpu-{known}.checked"


def _refusal(gpu: str, reason: str) -> str:
    return f"the native engine's check of {gpu} failed ({reason}); {WAY_OUT}"


def main(index: int) -> int:
    message = ctypes.create_string_buffer(4096)
    status = symbols().fdt_gpu_self_check(index, message, len(message))
    print(message.value.decode(errors="replace"))
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
