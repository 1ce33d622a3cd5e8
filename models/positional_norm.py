"""Positional normalization (PONO): each pixel loses its mean over the channels and is divided by their deviation.

Tensor normalization's neighbour, which takes off the mean alone. Here it is a control in TN's place: after every ReLU,
with the exact gradient, without the moment shortcut of its paper.
Source: B. Li, F. Wu, K. Weinberger, S. Belongie, "Positional Normalization", NeurIPS 2019, arXiv 1907.04312.
"""

from __future__ import annotations

import torch
from torch import nn

EPS = 1e-5  # added to the variance, as its authors' code does


def positional_norm(x: torch.Tensor) -> torch.Tensor:
    """f[n z ...] -> f[n z ...] in x's dtype, z >= 2: zero mean and unit deviation over z; float32 inside."""
    if x.dim() < 2 or x.shape[1] < 2:
        raise ValueError(f"positional norm needs [n channels ...] with 2 or more channels, got shape {tuple(x.shape)}")
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(full, dim=1, keepdim=True)
    return ((full - mean) * torch.rsqrt(variance + EPS)).to(x.dtype)


class PositionalNorm(nn.Module):
    """`positional_norm` as a layer, without parameters or state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return positional_norm(x)


def insert_positional_norm(model: nn.Module) -> nn.Module:
    """Put it after every nn.ReLU of a network of this package: changes the model in place and returns it.

    ValueError where there is no nn.ReLU: functional ones are not looked for.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.ReLU
    ]
    if not places:
        raise ValueError(f"found no nn.ReLU in {type(model).__name__}: build it without tensor_norm")
    for parent, name in places:
        setattr(parent, name, nn.Sequential(getattr(parent, name), PositionalNorm()))
    return model
