"""Tensor normalization (TN), Eq. 1 and Algorithm 1: subtract from each pixel the mean over its channels.

It has no parameters and no state, and does the same in training and in evaluation. Its layers follow every ReLU;
they are found, counted and switched between the two gradients here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models.relu_tensor_norm import Gradient, channel_mean, check_gradient, check_map, relu_tensor_norm

__all__ = [
    "Gradient",
    "ReLUTensorNorm",
    "TensorNorm",
    "count_tensor_norm_sites",
    "relu_tensor_norm",
    "set_tensor_norm_gradient",
    "tensor_norm",
    "tensor_norm_gradient",
    "tensor_norm_layers",
]


def tensor_norm(x: torch.Tensor, gradient: Gradient = "straight-through") -> torch.Tensor:
    """A* = A - M, Eq. 1: f[n z ...] -> f[n z ...] in x's dtype, M summed in float32 for half precision.

    Backward, with g = dL/dA*: `straight-through` (Algorithm 1) passes g on, `exact` passes g - mean_z g.
    """
    check_gradient(gradient)
    check_map(x)
    mean = channel_mean(x)
    return x - (mean if gradient == "exact" else mean.detach())


class TensorNorm(nn.Module):
    """`tensor_norm` as a layer; `gradient` may be reassigned at any time."""

    gradient: Gradient

    def __init__(self, gradient: Gradient = "straight-through") -> None:
        super().__init__()
        check_gradient(gradient)
        self.gradient = gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tensor_norm(x, self.gradient)

    def extra_repr(self) -> str:
        return f"gradient={self.gradient!r}"


class ReLUTensorNorm(TensorNorm):
    """`relu_tensor_norm` as a layer: takes the place of nn.ReLU and keeps one value a pixel more than it.

    `inplace` gives leave to overwrite the input, which nobody may read afterwards.
    """

    def __init__(self, gradient: Gradient = "straight-through", inplace: bool = False) -> None:
        super().__init__(gradient)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu_tensor_norm(x, self.gradient, self.inplace)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", inplace=True" if self.inplace else "")


def tensor_norm_layers(model: nn.Module) -> list[TensorNorm]:
    """The model's TN layers, with or without a fused ReLU. A layer that is called twice is listed once."""
    return [module for module in model.modules() if isinstance(module, TensorNorm)]


def set_tensor_norm_gradient(model: nn.Module, gradient: Gradient) -> None:
    """Switch all TN layers, for good; ValueError if there are none."""
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
    """Calls of TN layers in one evaluation forward; modes, statistics and random state stay as they were."""
    calls: list[nn.Module] = []
    hooks = [layer.register_forward_hook(lambda layer, *_: calls.append(layer)) for layer in tensor_norm_layers(model)]
    modes = [(module, module.training) for module in model.modules()]
    cuda = [example_input.device] if example_input.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            model.eval()(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return len(calls)
