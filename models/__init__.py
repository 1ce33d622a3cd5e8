"""Networks of the paper, tensor normalization, and ways to put it into any model and to fold it out again."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.fold import fold_tensor_norm
from models.insert import insert_tensor_norm
from models.resnet import Stem, resnet, resnet18, resnet34, resnet50, resnet152
from models.small_resnet import small_resnet
from models.tensor_norm import (
    Gradient,
    ReLUTensorNorm,
    TensorNorm,
    count_tensor_norm_sites,
    relu_tensor_norm,
    set_tensor_norm_gradient,
    tensor_norm,
    tensor_norm_gradient,
    tensor_norm_layers,
)
from models.wide_resnet import wide_resnet, wrn28_10

__all__ = [
    "Gradient",
    "ReLUTensorNorm",
    "Stem",
    "TensorNorm",
    "build_model",
    "count_tensor_norm_sites",
    "fold_tensor_norm",
    "insert_tensor_norm",
    "relu_tensor_norm",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet152",
    "set_tensor_norm_gradient",
    "small_resnet",
    "tensor_norm",
    "tensor_norm_gradient",
    "tensor_norm_layers",
    "wide_resnet",
    "wrn28_10",
]

_WITH_STEM: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet152": resnet152,
}
_WITHOUT_STEM: dict[str, Callable[..., nn.Module]] = {"wrn28_10": wrn28_10, "small": small_resnet}


def build_model(
    name: str, num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """A network by name: f[n in_channels h w] -> logits f[n num_classes].

    ValueError for an unknown name, and for a stem other than the default where the network has but one.
    """
    if name in _WITH_STEM:
        return _WITH_STEM[name](num_classes, in_channels, stem, tensor_norm)
    if name not in _WITHOUT_STEM:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join([*_WITH_STEM, *_WITHOUT_STEM])}")
    if stem != "cifar":
        raise ValueError(
            f"{name} has one stem only, got stem {stem!r}: leave stem out, or take one of {list(_WITH_STEM)}"
        )
    return _WITHOUT_STEM[name](num_classes, in_channels, tensor_norm=tensor_norm)
