"""ResNet-18/34/50/152 of Tables 1 and 2, and a small one: torchvision's blocks, stems for small images, TN on request.

The paper does not say how its networks were fitted to 32x32 images, so the stem is an option.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
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
    initialise(convolution)  # as torchvision does for the others
    return convolution


def initialise(model: nn.Module) -> None:
    """He initialisation of every convolution, in place, drawn from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


resnet18 = partial(resnet, 18)  # 11.17 M parameters with the CIFAR stem and 10 classes
resnet34 = partial(resnet, 34)  # Table 1: 21.28 M parameters with 10 classes; at 32x32 1.159 GMAC, with the pool 0.291
resnet50 = partial(resnet, 50)  # bottleneck blocks, as in ResNet-152 at a third of its depth
resnet152 = partial(resnet, 152)  # Table 2's deeper network


def small_resnet(
    num_classes: int, in_channels: int = 3, width: int = 16, tensor_norm: Gradient | None = None
) -> nn.Module:
    """f[n in_channels h w] -> logits f[n num_classes]; 7 TN sites. At width 16 2.61 MMAC for 3x28x28.

    Small enough to train and attack on two CPU cores: torchvision's BasicBlock, one a stage, of width, 2 width and 4
    width channels. Parameters with 10 classes: 78,042 at width 16, 308,650 at 32, 1,227,594 at 64. The stem's stride is
    2: one of stride 1 costs 9.6 MMAC and ran 3.0 to 3.5 times slower (channels_last, batch 100, two cores). Initial
    weights are as in `resnet`.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        stage1=BasicBlock(width, width),
        stage2=BasicBlock(width, 2 * width, 2, _shortcut(width, 2 * width)),
        stage3=BasicBlock(2 * width, 4 * width, 2, _shortcut(2 * width, 4 * width)),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(4 * width, num_classes),
    )
    model = nn.Sequential(layers)
    initialise(model)
    return model if tensor_norm is None else insert_tensor_norm(model, tensor_norm, inplace=True)


def _shortcut(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), nn.BatchNorm2d(out_channels))
