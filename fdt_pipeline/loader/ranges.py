"""Named ranges of time, as a profiler shows them: torch.profiler's anywhere, and NVTX where CUDA is in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def annotated(name: str) -> Iterator[None]:
    """A range of torch's, which takes 10 us and more, is there only while its profiler looks on."""
    with ExitStack() as ranges:
        if torch.autograd._profiler_enabled():
            ranges.enter_context(torch.autograd.profiler.record_function(name))
        if torch.cuda.is_initialized():
            torch.cuda.nvtx.range_push(name)
            ranges.callback(torch.cuda.nvtx.range_pop)
        yield
