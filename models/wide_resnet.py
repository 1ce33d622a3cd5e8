"""Wide ResNet of Table 2: pre-activation (BN, ReLU, convolution), no dropout.

Source: S. Zagoruyko and N. Komodakis, "Wide Residual Networks", BMVC 2016.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from fdt_pipeline.tensor_norm import Gradient, ReLUTensorNorm
from models.resnet import initialise


class _Block(nn.Module):
    """Two 3x3 convolutions. Where the shape changes, the shortcut is a 1x1 convolution of the first activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, tensor_norm: Gradient | None) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(in_channels), _relu(tensor_norm)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(out_channels), _relu(tensor_norm)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activation = self.relu1(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(activation)
        return self.conv2(self.relu2(self.bn2(self.conv1(activation)))) + skip


def wide_resnet(
    depth: int, width: int, num_classes: int, in_channels: int = 3, tensor_norm: Gradient | None = None
) -> nn.Sequential:
    """f[n in_channels h w] -> logits f[n num_classes]; depth = 6 b + 4 with b blocks in each of three stages.

    TN, where asked for, follows each of the 6 b + 1 ReLUs, and all of them feed convolutions or the classifier alone.
    He initialisation, drawn from torch's global generator: the same weights with TN and without.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ValueError(f"depth must be 10, 16, 22, 28, ... and width at least 1, got depth {depth} and width {width}")
    channels, layers = 16, [nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)]
    blocks: list[nn.Module] = []
    for out_channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for index in range((depth - 4) // 6):
            blocks.append(_Block(channels, out_channels, stride if index == 0 else 1, tensor_norm))
            channels = out_channels
    head = [nn.BatchNorm2d(channels), _relu(tensor_norm), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, *blocks, *head, nn.Linear(channels, num_classes))
    initialise(model)
    return model


wrn28_10 = partial(wide_resnet, 28, 10)  # 36.48 M parameters with 10 classes, 25 TN sites


def _relu(tensor_norm: Gradient | None) -> nn.Module:
    return nn.ReLU(inplace=True) if tensor_norm is None else ReLUTensorNorm(tensor_norm, inplace=True)
