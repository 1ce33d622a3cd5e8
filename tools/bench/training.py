"""A trainer: what a loader has to feed."""

from __future__ import annotations

from typing import Any, get_args

import torch

from models import Stem, build_model

from .entries import SameBatch
from .task import Task

PHOTO = 64  # pixels a side, from which on a ResNet gets its stem for photographs
IMAGENET: Stem = "imagenet"
assert IMAGENET in get_args(Stem)


class Trainer:
    """A model, its optimizer, and one step of SGD: forward, backward, update, done when it returns."""

    def __init__(self, model: str, task: Task) -> None:
        torch.manual_seed(task.seed)
        c, h, _ = task.shape
        stem: dict[str, Any] = {"stem": IMAGENET} if h >= PHOTO and model.startswith("resnet") else {}
        self._model = build_model(model, task.num_classes, in_channels=c, **stem).to(task.device).train()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9)

    def step(self, images: Any, targets: Any) -> None:
        loss = torch.nn.functional.cross_entropy(self._model(images), targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()


def same_batch(task: Task) -> SameBatch:
    """Random images with soft targets, on the task's device."""
    generator = torch.Generator().manual_seed(task.seed)
    images = torch.randn(task.batch_size, *task.shape, generator=generator)
    targets = torch.rand(task.batch_size, task.num_classes, generator=generator)
    return SameBatch(images.to(task.device), (targets / targets.sum(1, keepdim=True)).to(task.device))
