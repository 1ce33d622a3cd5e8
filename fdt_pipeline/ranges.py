"""Named ranges of time, as a profiler shows them: torch.profiler's anywhere, and NVTX where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def annotated(name: str) -> Iterator[None]:
    """4 us a range on a CPU, a few of them a batch."""
    on_gpu = torch.cuda.is_available()
    with torch.autograd.profiler.record_function(name):
        if on_gpu:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.nvtx.range_pop()
