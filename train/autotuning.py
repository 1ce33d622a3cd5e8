"""cuDNN's search for the fastest convolutions, where many batches of one shape follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def autotuned_convolutions(device_type: str) -> Iterator[None]:
    """On a GPU cuDNN tries its algorithms once for each shape, inside; put back as found."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device_type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
