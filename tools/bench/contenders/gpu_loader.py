"""The idea of airbench's GPU loader, in our own words: the whole set is on the GPU; an epoch flips and crops it there.

Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from ..task import Batch, Entry, Task
from .images import arrays


class GpuImages:
    """images f32[n c h w], standardized and framed by zeros once. It also runs on a CPU, where nobody would use it."""

    def __init__(self, task: Task) -> None:
        images, labels = arrays(task)
        u8 = torch.from_numpy(images).to(task.device).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(value, device=task.device).reshape(1, -1, 1, 1) for value in (task.mean, task.std))
        self._images = (pad(u8, (task.pad,) * 4).float() - mean) / std
        self._labels = torch.from_numpy(labels).to(task.device)
        self._task = task
        self._generator = torch.Generator(task.device).manual_seed(task.seed)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The whole set is flipped and cropped at once, then batches are rows of it in a new order."""
        images = self._cropped(self._flipped(self._images))
        order = torch.randperm(len(images), generator=self._generator, device=images.device)
        for rows in order.split(self._task.batch_size):
            yield images[rows], self._labels[rows]

    def _flipped(self, images: torch.Tensor) -> torch.Tensor:
        if not self._task.flip:
            return images
        odds = torch.rand(len(images), 1, 1, 1, generator=self._generator, device=images.device)
        return torch.where(odds < 0.5, images.flip(-1), images)

    def _cropped(self, images: torch.Tensor) -> torch.Tensor:
        """All images with the same shift are cut out together."""
        width = 2 * self._task.pad + 1
        if width == 1:
            return images
        h, w = self._task.shape[1:]
        shifts = torch.randint(width**2, (len(images),), generator=self._generator, device=images.device)
        cropped = images.new_empty(len(images), *self._task.shape)
        for shift in range(width**2):
            dy, dx = divmod(shift, width)
            chosen = shifts == shift
            cropped[chosen] = images[chosen, :, dy : dy + h, dx : dx + w]
        return cropped

    def close(self) -> None:
        del self._images, self._labels


ENTRIES = (
    Entry(
        "GPU, as airbench", "none", GpuImages, needs_gpu=True,
        note="our own short version of airbench's loader: the decoded set on the GPU, crops and flips by indexing",
    ),
)  # fmt: skip
