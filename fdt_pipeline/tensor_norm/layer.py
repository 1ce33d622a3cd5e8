"""Tensor normalization (TN), Eq. 1 and Algorithm 1: subtract from each pixel the mean over its channels.

It has no parameters and no state, and does the same in training and in evaluation. Its layers follow every ReLU;
they are found, counted and switched between the two gradients here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fdt_pipeline.tensor_norm.fused import Gradient, centred, check_gradient, check_map, relu_tensor_norm


def tensor_norm(x: torch.Tensor, gradient: Gradient = "straight-through", channel_dim: int = 1) -> torch.Tensor:
    """A* = A - M, Eq. 1: f[n z ...] -> f[n z ...] in x's dtype, M summed in float32 for half precision.

    z is the dimension `channel_dim`: 1 for [n channels h w], -1 for [n tokens channels].

    Backward, with g = dL/dA*: `straight-through` (Algorithm 1) passes g on, `exact` passes g - mean_z g.
    """
    check_gradient(gradient)
    check_map(x, channel_dim)
    return centred(x, gradient == "exact", channel_dim)


class TensorNorm(nn.Module):
    """`tensor_norm` as a layer; `gradient` and `channel_dim` may be reassigned at any time.

    With channel_dim None, the channels are the second dimension of [n channels] and [n channels h w], and a tensor of
    three dimensions is a ValueError: it may be [n channels length] or [n tokens channels].
    """

    def __init__(self, gradient: Gradient = "straight-through", channel_dim: int | None = None) -> None:
        super().__init__()
        check_gradient(gradient)
        self.gradient: Gradient = gradient  # annotated here, as TorchScript reads a class's annotations
        self.channel_dim = channel_dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channel_dim = _channel_dim(x, self.channel_dim)
        if torch.jit.is_scripting():
            return centred(x, self.gradient == "exact", channel_dim)
        return tensor_norm(x, self.gradient, channel_dim)

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}" + ("" if self.channel_dim is None else f", channel_dim={self.channel_dim}")


def _channel_dim(x: torch.Tensor, channel_dim: int | None) -> int:
    """The layer's channel_dim, or 1 where the shape leaves no doubt; TorchScript compiles this function."""
    if channel_dim is not None:
        return channel_dim
    if x.dim() == 3:
        raise ValueError(
            "tensor normalization cannot know the channels of a tensor of three dimensions, here "
            f"{list(x.shape)}: give insert_tensor_norm, or this layer, channel_dim=-1 for [n tokens channels] or "
            "channel_dim=1 for [n channels length]; an image [channels h w] needs its batch dimension"
        )
    return 1


class ReLUTensorNorm(TensorNorm):
    """`relu_tensor_norm` as a layer in place of nn.ReLU; it saves one value a pixel more for backward.

    With `inplace`, the input may be overwritten, so nobody may read it afterwards.
    """

    def __init__(
        self, gradient: Gradient = "straight-through", inplace: bool = False, channel_dim: int | None = None
    ) -> None:
        super().__init__(gradient, channel_dim)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channel_dim = _channel_dim(x, self.channel_dim)
        if torch.jit.is_scripting():
            return centred(torch.relu(x), self.gradient == "exact", channel_dim)
        return relu_tensor_norm(x, self.gradient, self.inplace, channel_dim)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", inplace=True" if self.inplace else "")


def tensor_norm_layers(model: nn.Module) -> list[TensorNorm]:
    """The model's TN layers, with or without a fused ReLU. A layer that is called twice is listed once."""
    return [module for module in model.modules() if isinstance(module, TensorNorm)]


def set_tensor_norm_gradient(model: nn.Module, gradient: Gradient) -> None:
    """Switch all TN layers permanently; ValueError if there are none."""
    check_gradient(gradient)
    layers = tensor_norm_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no tensor normalization to switch: insert_tensor_norm() adds it")
    for layer in layers:
        layer.gradient = gradient


@contextmanager
def tensor_norm_gradient(model: nn.Module, gradient: Gradient) -> Iterator[None]:
    """Switch all TN layers inside the block, each back to its own on leaving; a model without TN passes unchanged.

    A graph built inside the block keeps the block's gradient, so backward() may come after it.
    """
    check_gradient(gradient)
    before = [(layer, layer.gradient) for layer in tensor_norm_layers(model)]
    try:
        for layer, _ in before:
            layer.gradient = gradient
        yield
    finally:
        for layer, own in before:
            layer.gradient = own


def count_tensor_norm_sites(model: nn.Module, example_input: torch.Tensor) -> int:
    """Calls of TN layers in one evaluation forward of a copy; the random state stays as it was."""
    calls: list[nn.Module] = []
    model = copy.deepcopy(model).eval()
    for layer in tensor_norm_layers(model):
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    with torch.no_grad(), torch.random.fork_rng(devices=[example_input.device] if example_input.is_cuda else []):
        model(example_input)
    return len(calls)
