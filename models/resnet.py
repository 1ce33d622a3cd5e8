"""ResNet-18/34/50/152 of Tables 1 and 2: torchvision's networks with a stem for small images and, on request, TN.

The paper does not say how its networks were fitted to 32x32 images, so the stem is an option.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fdt_pipeline.tensor_norm import Gradient, insert_tensor_norm

Stem = Literal["cifar", "cifar-pool", "imagenet"]

_BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def resnet(
    depth: int, num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """f[n in_channels h w] -> logits f[n num_classes]; with TN after each of its 17, 33, 49 or 151 ReLUs.

    Stems: `cifar` is a 3x3 convolution of stride 1; `cifar-pool` adds a 3x3 max-pool of stride 2, a quarter of the
    arithmetic; `imagenet` is torchvision's 7x7 of stride 2 and pool. With TN the order is ReLU, TN, pool.
    He initialisation, drawn from torch's global generator: the same weights with TN and without.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"depth must be one of {sorted(_BLOCKS)}, got {depth}")
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be one of {list(get_args(Stem))}, got {stem!r}")
    block, layers = _BLOCKS[depth]
    model = ResNet(block, layers, num_classes=num_classes)
    model.conv1 = _first_convolution(in_channels, stem)
    if stem == "cifar":
        model.maxpool = nn.Identity()
    return model if tensor_norm is None else insert_tensor_norm(model, tensor_norm, inplace=True)


def _first_convolution(in_channels: int, stem: Stem) -> nn.Conv2d:
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    convolution = nn.Conv2d(in_channels, 64, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(
        convolution.weight, mode="fan_out", nonlinearity="relu"
    )  # as torchvision does for the others
    return convolution


def resnet18(
    num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """11.17 M parameters with the CIFAR stem and 10 classes."""
    return resnet(18, num_classes, in_channels, stem, tensor_norm)


def resnet34(
    num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """Table 1: 21.28 M parameters with 10 classes; at 32x32 1.159 GMAC, with the pool 0.291."""
    return resnet(34, num_classes, in_channels, stem, tensor_norm)


def resnet50(
    num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """Bottleneck blocks, as in ResNet-152 at a third of its depth."""
    return resnet(50, num_classes, in_channels, stem, tensor_norm)


def resnet152(
    num_classes: int, in_channels: int = 3, stem: Stem = "cifar", tensor_norm: Gradient | None = None
) -> nn.Module:
    """Table 2's deeper network."""
    return resnet(152, num_classes, in_channels, stem, tensor_norm)
