"""The form of a batch: what every trainer relies on."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import RefusedError
from ..task import Mixing, Task

SUM = 1e-3  # how far a target's sum may be from 1: what a thousand float32 roundings come to, and more


def check_form(batch: Any, task: Task, mixing: Mixing) -> None:
    """RefusedError unless it is (images, targets) as the task says."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise RefusedError(f"a batch must be (images, targets), got {type(batch).__name__}")
    images, targets = batch
    for name, tensor in (("images", images), ("targets", targets)):
        if not isinstance(tensor, torch.Tensor):
            raise RefusedError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device.type != torch.device(task.device).type:
            raise RefusedError(f"{name} must be on {task.device}, got {tensor.device}")
    _check_images(images, task)
    if len(targets) != len(images):
        raise RefusedError(f"expected a target an image, got {len(images)} images and {len(targets)} targets")
    if targets.ndim == 1 and mixing == "none":
        _check_labels(targets, task.num_classes)
    else:
        _check_soft(targets, task.num_classes)


def _check_images(images: torch.Tensor, task: Task) -> None:
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != task.shape or images.ndim != 4:
        raise RefusedError(
            f"images must be float32 [n {' '.join(map(str, task.shape))}], got {images.dtype} {list(images.shape)}"
        )
    if not 1 <= len(images) <= task.batch_size:
        raise RefusedError(f"a batch must have 1 to {task.batch_size} images, got {len(images)}")
    if not torch.isfinite(images).all():
        raise RefusedError("images must be finite")


def _check_labels(labels: torch.Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64:
        raise RefusedError(f"labels must be int64, got {labels.dtype}")
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise RefusedError(f"labels must be in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}")


def _check_soft(targets: torch.Tensor, num_classes: int) -> None:
    if targets.dtype != torch.float32 or tuple(targets.shape[1:]) != (num_classes,):
        raise RefusedError(f"targets must be float32 [n {num_classes}], got {targets.dtype} {list(targets.shape)}")
    if (targets < 0).any() or not ((targets.sum(1) - 1).abs() <= SUM).all():
        worst = targets.sum(1)[(targets.sum(1) - 1).abs().argmax()]
        raise RefusedError(
            f"targets must be at least 0 and sum to 1, got {targets.min():.4g} at least, a sum {worst:.4g}"
        )
