"""The number formats that training, evaluation and attacks compute in.

Training on a GPU is in mixed precision, and on a CPU where it is asked for. Evaluation is in full float32: without
autocast and without TF32. Attacks on a GPU are made with a compromise.

On GPUs since Ampere, torch's convolutions round their inputs to TF32 by default: 11 significant bits, so values in
[0.25, 0.5) move in steps of 2.4e-4. An attack of radius 1e-4 would be rounded away before the model sees it. Only its
first layer sees it so: behind that a change of 1e-4 is spread over sums, and rounding is noise that averages out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

Precision = Literal["float32", "tf32"]


def amp_dtype(device: torch.device, mixed: bool = False) -> torch.dtype | None:
    """On a GPU bfloat16 where it is native, else float16 with a scaled loss. On a CPU None, with `mixed` bfloat16: on
    one thread of an EPYC with avx512_bf16 the small network's step took 21.3 ms for 27.9, with TN 32.4 for 31.7.
    """
    if device.type != "cuda":
        return torch.bfloat16 if mixed else None
    native = torch.cuda.get_device_capability(device)[0] >= 8  # is_bf16_supported() counts emulation as support
    return torch.bfloat16 if native else torch.float16


def autocast(device: torch.device, mixed: bool = False) -> AbstractContextManager[Any]:
    dtype = amp_dtype(device, mixed)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Autocast on `device_type` ("cpu", "cuda", ..) and TF32 everywhere are off inside; put back as found."""
    with torch.autocast(device_type, enabled=False), _tf32(False):
        yield


@contextmanager
def tf32_behind_first_layer(model: nn.Module, device_type: str) -> Iterator[None]:
    """The layer of `model` that is called first, a convolution or a linear one, computes in full float32, all others on
    a GPU in TF32, and so do backward passes. On an H100 an attack on ResNet-34 takes a sixth of the time so.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))]
    first: list[nn.Module] = []  # of this forward pass
    inside = ExitStack()

    def begin(*_: Any) -> None:
        first.clear()

    def before(layer: nn.Module, inputs: Any) -> None:
        if not first:
            first.append(layer)
            inside.enter_context(_tf32(False))

    def after(layer: nn.Module, *_: Any) -> None:
        if layer is first[0]:
            inside.close()

    handles = [model.register_forward_pre_hook(begin)]
    handles += [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after, always_call=True) for layer in layers]
    try:
        with torch.autocast(device_type, enabled=False), _tf32(True):
            yield
    finally:
        for handle in handles:
            handle.remove()


def attack_precision(precision: Precision | None, device_type: str) -> Precision:
    """The one asked for; by default "tf32" on a GPU (see `tf32_behind_first_layer`) and "float32" elsewhere."""
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {list(get_args(Precision))}, got {precision!r}")
    return precision or ("tf32" if device_type == "cuda" else "float32")


@contextmanager
def autotuned_convolutions(device_type: str) -> Iterator[None]:
    """On a GPU cuDNN tries its algorithms once for each shape, inside; put back as found."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device_type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    try:
        convolution, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # torch >= 2.9 refuses these flags once their successors, fp32_precision, have been used
        with _tf32_by_fp32_precision(allowed):
            yield
        return
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _tf32_by_fp32_precision(allowed: bool) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn  # older releases lack `conv`
    switches = (cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
