"""ReLU and tensor normalization as one autograd function, which saves what ReLU saves and one value a pixel more.

Eager `relu` then `subtract` keeps two maps: ReLU's output for ReLU's own backward, and A*, which the next
convolution needs. Here only A* and the mean M are kept. Where A = 0 the output is exactly -M, so the ReLU mask is
A* > -M. Left alone, that loses each A > 0 too small to change -M when M is subtracted (in bfloat16 one positive
value in 1,250 of a rectified normal map), so the forward raises those just enough that A* is the next number
above -M.

There are two implementations of the passes: torch's operations, here, and Triton kernels on a GPU. torch.compile is
always given the former, and fuses them with the operations around them. On a CPU a map is worked through in pieces
that stay in the cache: five operations over f32[100 64 32 32] as a whole read and write memory five times, over pieces
of 2 MiB once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

Gradient = Literal["straight-through", "exact"]
Passes = tuple[Callable[..., Any], Callable[..., Any]]  # forward and backward, as below
BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
PIECE = 2**21  # bytes: on one core with 0.5 MiB of L2, 1 and 4 MiB took up to 1.3 times as long, whole maps 2 times


def relu_tensor_norm(
    x: torch.Tensor, gradient: Gradient = "straight-through", inplace: bool = False, channel_dim: int = 1
) -> torch.Tensor:
    """ReLU, then Eq. 1: f[n z ...] -> f[n z ...] in x's dtype and memory format; z is the dimension `channel_dim`.

    Backward, with g = dL/dA*: `straight-through` (Algorithm 1) is g where x > 0, `exact` is g - mean_z g where x > 0.
    Equal to `tensor_norm(x.relu())`, save that a positive A lost in rounding comes out one number higher.
    With `inplace`, x may be overwritten, so nobody may read it afterwards; one map less is alive meanwhile.
    It can be differentiated once; a second backward raises RuntimeError. Inside torch.func's transforms (vmap, grad,
    jvp, ...) ReLU and TN run as two operations, so that every transform applies.
    """
    check_gradient(gradient)
    check_map(x, channel_dim)
    exact, compiling = gradient == "exact", torch.compiler.is_compiling()
    if not compiling and torch._C._are_functorch_transforms_active():
        return centred(torch.relu(x), exact, channel_dim)
    if channel_dim == 1:
        return _ReLUTensorNorm.apply(x, exact, inplace and not compiling)
    return _ReLUTensorNorm.apply(x.movedim(channel_dim, 1), exact, False).movedim(1, channel_dim)


def check_gradient(gradient: str) -> None:
    """ValueError unless gradient is one of the two names."""
    if gradient not in ("straight-through", "exact"):  # plain, as torch.compile reads this line
        raise ValueError(f"gradient must be 'straight-through' or 'exact', got {gradient!r}")


def check_map(x: torch.Tensor, channel_dim: int = 1) -> None:
    """ValueError unless x is floating point and channel_dim one of its dimensions, the first, n, left out."""
    if x.dim() < 2 or x.dtype not in BITS:
        raise ValueError(
            f"tensor normalization needs a float [n channels ...] tensor, got {x.dtype} of shape {tuple(x.shape)}: "
            "add the batch dimension or cast the input"
        )
    if not 1 <= abs(channel_dim) < x.dim():
        raise ValueError(
            f"channel_dim must be 1 to {x.dim() - 1}, or -1 to {1 - x.dim()}, for a tensor of shape {tuple(x.shape)}, "
            f"got {channel_dim}: 1 is the second dimension, -1 the last, and the first is the batch"
        )


class _ReLUTensorNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, exact: bool, inplace: bool) -> torch.Tensor:
        output, mean = _passes(x)[0](x, inplace)
        if inplace:
            ctx.mark_dirty(output)
        ctx.exact = exact
        ctx.save_for_backward(output, mean)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        output, mean = ctx.saved_tensors
        return _passes(grad)[1](grad, output, mean, ctx.exact), None, None


def _passes(x: torch.Tensor) -> Passes:
    if torch.compiler.is_compiling() or not x.is_cuda:
        return forward, backward
    return _kernels() or (forward, backward)


@functools.cache
def _kernels() -> Passes | None:
    """The Triton kernels, if they run here: Triton may be absent, and needs a C compiler for its launchers."""
    try:
        from fdt_pipeline.tensor_norm import triton_kernels as kernels
    except ImportError:
        return None
    try:
        kernels.forward(torch.zeros(1, 1, device="cuda"))
    except Exception as error:  # a compiler's own kinds, which differ from release to release
        warnings.warn(
            f"Triton's kernels of tensor normalization do not run here ({type(error).__name__}: {error}): torch's own "
            "operations take their place, which read and write each map several times",
            UserWarning,
            stacklevel=2,
        )
        return None
    return kernels.forward, kernels.backward


def channel_mean(x: torch.Tensor, channel_dim: int = 1) -> torch.Tensor:
    """M of Eq. 1: f[n z ...] -> f[n 1 ...], summed in float32 for half precision, rounded once to x's dtype."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return x.mean(channel_dim, keepdim=True, dtype=torch.float32).to(x.dtype)
    return x.mean(channel_dim, keepdim=True)


def centred(x: torch.Tensor, exact: bool, channel_dim: int = 1) -> torch.Tensor:
    """A - M with autograd's own gradient, that of M left out unless `exact`; TorchScript compiles it."""
    mean = channel_mean(x, channel_dim)
    return x - (mean if exact else mean.detach())


def forward(x: torch.Tensor, inplace: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """f[n z ...] -> A* f[n z ...] in x's memory format, M f[n 1 ...]; A* = -M where x <= 0, A* > -M where x > 0.

    With `inplace`, A* overwrites x; torch.compile places its results itself, and ignores it.
    """
    if torch.compiler.is_compiling():
        mean = channel_mean(torch.relu(x))
        return _keep_where_positive(x.clamp(min=_spacing_below(mean)), x) - mean, mean
    output, mean = x if inplace else torch.empty_like(x), x.new_empty((len(x), 1, *x.shape[2:]))
    for piece, mean_out, out in _pieces(x, mean, output):
        activation = _keep_where_positive(piece, piece)
        mean_out.copy_(channel_mean(activation))
        activation.clamp_(min=_spacing_below(mean_out))  # raises the zeros too, which the next line puts back
        _keep_where_positive(activation, piece, out).sub_(mean_out)
    return output, mean


def backward(grad: torch.Tensor, output: torch.Tensor, mean: torch.Tensor, exact: bool) -> torch.Tensor:
    """dL/dA* f[n z ...] -> dL/dx f[n z ...], given what forward returned."""
    if torch.compiler.is_compiling():
        grad = grad - channel_mean(grad) if exact else grad
        return _keep_where_positive(grad, output + mean)
    result = torch.empty_like(output)
    for piece, a, m, out in _pieces(grad, output, mean, result):
        if exact:
            piece = piece - channel_mean(piece)
        torch.add(a, m, out=out)  # zero exactly where A* = -M: the difference of two floats never underflows to zero
        _keep_where_positive(piece, out, out)
    return result


def _spacing_below(mean: torch.Tensor) -> torch.Tensor:
    """M minus the float before it (0 for M = 0): the least A for which A - M is sure to be above -M.

    M >= 0, where floats are ordered as their bits are.
    """
    bits = mean.view(BITS[mean.dtype])
    return mean - (bits.clamp(min=1) - 1).view(mean.dtype)


def _keep_where_positive(values: torch.Tensor, gate: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Values where gate > 0, else 0: 0.4 ms for f32[100 64 32 32] on two cores, a boolean torch.where takes 12."""
    if out is None:
        return torch.ops.aten.threshold_backward(values, gate, 0)
    return torch.ops.aten.threshold_backward.grad_input(values, gate, 0, grad_input=out)


def _pieces(*maps: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same samples of each map; all of them at once on a GPU, where many small kernels would cost more."""
    first = maps[0]
    if first.device.type != "cpu" or first.numel() == 0:
        yield maps
        return
    sample_bytes = first[0].numel() * first.element_size()
    yield from zip(*(each.split(max(1, PIECE // sample_bytes)) for each in maps), strict=True)
