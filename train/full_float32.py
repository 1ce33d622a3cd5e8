"""float32 that is float32: without autocast and without TF32.

On GPUs since Ampere, torch's convolutions round their inputs to TF32 by default: 11 significant bits, so values in
[0.25, 0.5) move in steps of 2.4e-4. An attack of radius 1e-4 would be rounded away before the model sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Autocast on `device_type` ("cpu", "cuda", ..) and TF32 everywhere are off inside; put back as found."""
    with torch.autocast(device_type, enabled=False), _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    try:
        convolution, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # torch >= 2.9 refuses these flags once their successors, fp32_precision, have been used
        with _without_tf32_by_fp32_precision():
            yield
        return
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _without_tf32_by_fp32_precision() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn  # older releases lack `conv`
    switches = (cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
