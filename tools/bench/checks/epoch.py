"""What a contender gives in an epoch, reduced batch by batch to what the checks need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..epoch_count import EpochCount
from ..task import Contender, Mixing, Task
from .form import check_form

THUMBNAIL = 8  # pixels a side
F32 = npt.NDArray[np.float32]
Key = Callable[[torch.Tensor], list[Any]]


@dataclass
class Epoch:
    """keys: what stands for each output; targets f32[n num_classes] of each batch; means f32[n c], 0..255, and how far
    any pixel is from its image's mean."""

    keys: list[Any] = field(default_factory=list)
    targets: list[F32] = field(default_factory=list)
    means: list[F32] = field(default_factory=list)
    flatness: float = 0.0

    @property
    def all_targets(self) -> F32:
        return np.concatenate(self.targets)


def take_epoch(contender: Contender, task: Task, mixing: Mixing, number: int, key: Key) -> Epoch:
    """RefusedError for a wrong form, and for too few or too many images."""
    epoch, count = Epoch(), EpochCount.of(task)
    for batch in contender.epoch(number):
        check_form(batch, task, mixing)
        images, targets = batch
        count.add(len(images))
        _note(epoch, to_u8_range(images, task), one_hot(targets, task.num_classes), key)
    count.end(number)
    return epoch


def _note(epoch: Epoch, pixels: torch.Tensor, targets: torch.Tensor, key: Key) -> None:
    means = pixels.mean((2, 3), keepdim=True)
    epoch.keys += key(pixels)
    epoch.targets.append(targets.numpy())
    epoch.means.append(means[..., 0, 0].numpy())
    epoch.flatness = max(epoch.flatness, float((pixels - means).abs().max()))


def to_u8_range(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Standardized -> f32[n c h w], a copy on the CPU in 0..255."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (task.mean, task.std))
    return images.detach().cpu() * std + mean


def one_hot(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """A copy on the CPU."""
    if targets.ndim == 1:
        return torch.nn.functional.one_hot(targets.cpu(), num_classes).float()
    return targets.detach().cpu().clone()


def hashes(pixels: torch.Tensor) -> list[bytes]:
    """Of the pixels to the nearest quarter: roundings do not change it, a wrong mean or std does."""
    quarters = (4 * pixels).round().to(torch.int16).numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in quarters]


def exact_hashes(pixels: torch.Tensor) -> list[bytes]:
    """Of the sums as they are: two that differ by a rounding have different ones."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.numpy()]


def thumbnails(pixels: torch.Tensor) -> list[F32]:
    """f32[c x THUMBNAIL x THUMBNAIL] of each: what another decoder or another filter hardly changes."""
    return list(torch.nn.functional.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1).numpy())
