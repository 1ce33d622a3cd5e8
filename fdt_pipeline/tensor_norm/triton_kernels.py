"""The two passes of ReLU and tensor normalization as Triton kernels: each reads its maps once and writes one.

A program holds some pixels with all their channels, so the mean is taken between the read and the write. The results
are those of fused.py's passes, up to the order in which a mean is summed. Pixels and channels are addressed by
their strides, so NCHW and channels_last are served alike. Importing this module needs Triton.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_TILE = 4096  # values a program holds: 32 a thread with 4 warps
_FEWEST_PIXELS = 16  # where channels are not adjacent, so that a row of float16 fills a sector of 32 bytes


def forward(x: torch.Tensor, inplace: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """f[n z ...] -> A* f[n z ...] in x's memory format, M f[n 1 ...]; A* = -M where x <= 0, A* > -M where x > 0.

    With `inplace`, A* overwrites x.
    """
    pixels = _pixels(x)
    output = pixels if inplace else torch.empty_like(pixels)
    mean = x.new_empty((len(x), 1, *x.shape[2:]))
    if x.numel():
        blocks, arguments, options = _launch(pixels)
        with torch.cuda.device_of(x):
            _forward[blocks](pixels, output, mean, *arguments, **options)
    if not inplace:
        return output.view(x.shape), mean
    return x if output.data_ptr() == x.data_ptr() else x.copy_(output.view(x.shape)), mean


def backward(grad: torch.Tensor, output: torch.Tensor, mean: torch.Tensor, exact: bool) -> torch.Tensor:
    """dL/dA* f[n z ...] -> dL/dx f[n z ...], given what forward returned."""
    a, g = _pixels(output), _pixels(grad)
    g = g if g.stride() == a.stride() else torch.empty_like(a).copy_(g)
    result = torch.empty_like(a)
    if grad.numel():
        blocks, arguments, options = _launch(a)
        with torch.cuda.device_of(grad):
            _backward[blocks](g, a, mean, result, *arguments, exact=exact, **options)
    return result.view(output.shape)


@triton.jit
def _forward(
    x_ptr,
    output_ptr,
    mean_ptr,
    num_pixels,
    pixels_per_sample,
    num_channels,
    stride_n,
    stride_z,
    stride_p,
    channels: tl.constexpr,
    pixels: tl.constexpr,
):
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    z = tl.arange(0, channels)
    inside = (pixel < num_pixels)[:, None] & (z < num_channels)[None, :]
    n, p = (pixel // pixels_per_sample).to(tl.int64), pixel % pixels_per_sample
    at = (n * stride_n + p * stride_p)[:, None] + (z * stride_z)[None, :]
    x = _wide(tl.load(x_ptr + at, mask=inside, other=0))
    dtype = output_ptr.dtype.element_ty
    mean = _mean(tl.where(x <= 0, 0, x), num_channels, dtype)  # NaN passes, as through torch.relu
    least = mean - _wide(_float_before(mean.to(dtype)))
    raised = tl.where(x <= 0, 0, tl.where(x < least[:, None], least[:, None], x))
    output = (raised - mean[:, None]).to(dtype)
    tl.store(output_ptr + at, output, mask=inside)
    tl.store(mean_ptr + pixel, mean.to(dtype), mask=pixel < num_pixels)


@triton.jit
def _backward(
    grad_ptr,
    output_ptr,
    mean_ptr,
    result_ptr,
    num_pixels,
    pixels_per_sample,
    num_channels,
    stride_n,
    stride_z,
    stride_p,
    exact: tl.constexpr,
    channels: tl.constexpr,
    pixels: tl.constexpr,
):
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    z = tl.arange(0, channels)
    inside = (pixel < num_pixels)[:, None] & (z < num_channels)[None, :]
    n, p = (pixel // pixels_per_sample).to(tl.int64), pixel % pixels_per_sample
    at = (n * stride_n + p * stride_p)[:, None] + (z * stride_z)[None, :]
    grad = _wide(tl.load(grad_ptr + at, mask=inside, other=0))
    output = _wide(tl.load(output_ptr + at, mask=inside, other=0))
    mean = _wide(tl.load(mean_ptr + pixel, mask=pixel < num_pixels, other=0))
    dtype = result_ptr.dtype.element_ty
    if exact:
        grad = grad - _mean(grad, num_channels, dtype)[:, None]
    kept = tl.where(output <= -mean[:, None], 0, grad).to(dtype)
    tl.store(result_ptr + at, kept, mask=inside)


@triton.jit
def _wide(x):
    """To the precision that sums are taken in."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _mean(x, num_channels, dtype: tl.constexpr):
    """f[pixels channels] -> f[pixels]: rounded once to dtype, and wide again."""
    return _wide((tl.sum(x, axis=1) / num_channels).to(dtype))


@triton.jit
def _float_before(x):
    """The next float towards zero of x >= 0; 0 of 0."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        return tl.where(bits > 0, bits - 1, 0).to(tl.float64, bitcast=True)
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        return tl.where(bits > 0, bits - 1, 0).to(tl.float32, bitcast=True)
    else:
        bits = x.to(tl.int16, bitcast=True)
        return tl.where(bits > 0, bits - 1, 0).to(tl.int16).to(x.dtype, bitcast=True)


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """f[n z ...] -> f[n z p], dense: a view in NCHW and channels_last, else a copy."""
    pixels = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    return pixels if torch.empty_like(pixels).stride() == pixels.stride() else pixels.contiguous()


def _launch(pixels: torch.Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """(grid, sizes and strides, sizes of a program's tile): all channels of as many pixels as fit."""
    n, z, p = pixels.shape
    channels = triton.next_power_of_2(z)
    in_tile = max(_TILE // channels, 1 if pixels.stride(1) == 1 else _FEWEST_PIXELS)
    num_warps = min(max(channels * in_tile // 1024, 4), 16)
    options = {"channels": channels, "pixels": in_tile, "num_warps": num_warps}
    return (triton.cdiv(n * p, in_tile),), (n * p, p, z, *pixels.stride()), options
