"""The augmentation of a task in torchvision's transforms v2, which most of the libraries leave to their users."""

from __future__ import annotations

from typing import Any

import torch

from ..task import Task
from .installed import torchvision_v2


def augmentation(task: Task) -> list[Any]:
    """Of u8[c h w], or of PIL images: resize, random crop out of a frame of zeros, flip."""
    v2 = torchvision_v2()
    size = task.shape[1:]
    resize = [v2.Resize(size, antialias=True)] if task.size is not None else []
    crop = [v2.RandomCrop(size, padding=task.pad)] if task.pad else []
    return [*resize, *crop, *([v2.RandomHorizontalFlip()] if task.flip else [])]


def standardization(task: Task) -> list[Any]:
    """u8[c h w] -> f32[c h w]; without the scaling to [0, 1], which would be a second pass."""
    v2 = torchvision_v2()
    return [v2.ToDtype(torch.float32), v2.Normalize(list(task.mean), list(task.std), inplace=True)]


def whole_transform(task: Task) -> Any:
    return torchvision_v2().Compose([*augmentation(task), *standardization(task)])


def from_pil(task: Task) -> Any:
    """The same of PIL images, in the order of torchvision's examples: crop and flip, then a tensor."""
    v2 = torchvision_v2()
    return v2.Compose([*augmentation(task), v2.ToImage(), *standardization(task)])
