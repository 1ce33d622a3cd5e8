"""A trainer: what a loader has to feed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch

from fdt_pipeline.losses import cross_entropy
from models import build_model
from train.step import TrainStep, make_optimizer, make_scaler

from .task import Batch, Task

PHOTO = 64  # pixels a side, from which on a ResNet gets its stem for photographs


class Trainer:
    """A model, its optimizer, and one step of SGD, done when it returns.

    The step is that of `python -m train`: on a GPU with mixed precision, as one CUDA graph."""

    def __init__(self, model: str, task: Task) -> None:
        torch.manual_seed(task.seed)
        c, h, _ = task.shape
        self._num_classes = task.num_classes
        device = torch.device(task.device)
        stem: dict[str, Any] = {"stem": "imagenet"} if h >= PHOTO and model.startswith("resnet") else {}
        network = build_model(model, task.num_classes, in_channels=c, **stem)
        network = network.to(device).to(memory_format=torch.channels_last).train()
        optimizer, scaler = make_optimizer(network, 0.01, 0.9, 0.0, device), make_scaler(device)
        self._step = TrainStep(network, cross_entropy, optimizer, scaler, device, graph=device.type == "cuda")

    def step(self, images: Any, targets: Any) -> None:
        if targets.dim() == 1:  # labels
            targets = torch.nn.functional.one_hot(targets, self._num_classes).float()
        self._step(images.contiguous(memory_format=torch.channels_last), targets)
        if images.is_cuda:
            torch.cuda.synchronize()


class SameBatch:
    """The bound of a model without a loader: one batch of random images with soft targets, again and again."""

    def __init__(self, task: Task) -> None:
        generator = torch.Generator().manual_seed(task.seed)
        images = torch.randn(task.batch_size, *task.shape, generator=generator).to(memory_format=torch.channels_last)
        targets = torch.rand(task.batch_size, task.num_classes, generator=generator)
        self._batch = images.to(task.device), (targets / targets.sum(1, keepdim=True)).to(task.device)

    def epoch(self, number: int) -> Iterator[Batch]:
        return repeat(self._batch)

    def close(self) -> None:
        """It holds nothing that must be closed."""
