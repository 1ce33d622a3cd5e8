"""Networks of the paper, by name and by function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from fdt_pipeline.tensor_norm import Gradient
from models.resnet import Stem, resnet, resnet18, resnet34, resnet50, resnet152, small_resnet
from models.wide_resnet import wide_resnet, wrn28_10

__all__ = [
    "SMALL_WIDTHS",
    "Stem",
    "build_model",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet152",
    "small_resnet",
    "wide_resnet",
    "wrn28_10",
]

_WITH_STEM = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet152": resnet152}
SMALL_WIDTHS = {"small": 16, "small32": 32, "small64": 64}  # of `small_resnet`
_WITHOUT_STEM: dict[str, Callable[..., nn.Module]] = {
    "wrn28_10": wrn28_10,
    **{name: partial(small_resnet, width=width) for name, width in SMALL_WIDTHS.items()},
}


def build_model(
    name: str, num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """A network by name: f[n in_channels h w] -> logits f[n num_classes].

    ValueError for an unknown name, and for a stem other than the default where the network has only one.
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
