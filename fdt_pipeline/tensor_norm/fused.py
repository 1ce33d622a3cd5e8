"""ReLU and tensor normalization as one autograd function, which saves what ReLU saves and one value a pixel more.

Eager `relu` then `subtract` keeps two maps: ReLU's output for ReLU's own backward, and A*, which the next
convolution needs. Here only A* and the mean M are kept. Where A = 0 the output is exactly -M, so the ReLU mask is
A* > -M. Left alone, that loses each A > 0 too small to change -M when M is subtracted (in bfloat16 one positive
value in 1,250 of a rectified normal map), so the forward raises those just enough that A* is the next number
above -M.

There are two implementations of the passes: torch's operations (eager.py), and Triton kernels on a GPU.
torch.compile is always given the former, and fuses them with the operations around them.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from fdt_pipeline.tensor_norm import eager
from fdt_pipeline.tensor_norm.eager import BITS, centred

Gradient = Literal["straight-through", "exact"]


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
        output, mean = _passes(x).forward(x, inplace)
        if inplace:
            ctx.mark_dirty(output)
        ctx.exact = exact
        ctx.save_for_backward(output, mean)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        output, mean = ctx.saved_tensors
        return _passes(grad).backward(grad, output, mean, ctx.exact), None, None


def _passes(x: torch.Tensor) -> Any:
    if torch.compiler.is_compiling() or not x.is_cuda:
        return eager
    return _kernels() or eager


@functools.cache
def _kernels() -> ModuleType | None:
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
    return kernels
