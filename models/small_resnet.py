"""A ResNet small enough to train and attack on two CPU cores: torchvision's BasicBlock, one a stage."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock

from fdt_pipeline.tensor_norm import Gradient, insert_tensor_norm


def small_resnet(
    num_classes: int, in_channels: int = 3, width: int = 16, tensor_norm: Gradient | None = None
) -> nn.Module:
    """f[n in_channels h w] -> logits f[n num_classes]: 2.61 MMAC for 3x28x28, 78,042 parameters, 7 TN sites.

    Stages of width, 2 width and 4 width channels. The stem's stride is 2: one of stride 1 costs 9.6 MMAC and ran 3.0
    to 3.5 times slower (channels_last, batch 100, two cores).
    He initialisation, drawn from torch's global generator: the same weights with TN and without.
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
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model if tensor_norm is None else insert_tensor_norm(model, tensor_norm, inplace=True)


def _shortcut(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), nn.BatchNorm2d(out_channels))
