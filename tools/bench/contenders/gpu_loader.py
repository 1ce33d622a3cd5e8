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
        """The whole set is cropped and flipped at once, then batches are rows of it in a new order."""
        images = self._images
        n, (_, h, w) = len(images), self._task.shape
        device, generator = images.device, self._generator
        if self._task.pad:
            shifts = torch.randint(2 * self._task.pad + 1, (2, n, 1), generator=generator, device=device)
            rows, columns = shifts[0] + torch.arange(h, device=device), shifts[1] + torch.arange(w, device=device)
            each = torch.arange(n, device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self._task.flip:
            odds = torch.rand(n, 1, 1, 1, generator=generator, device=device)
            images = torch.where(odds < 0.5, images.flip(-1), images)
        order = torch.randperm(n, generator=generator, device=device)
        for rows in order.split(self._task.batch_size):
            yield images[rows], self._labels[rows]

    def close(self) -> None:
        del self._images, self._labels


ENTRIES = (
    Entry(
        "GPU, as airbench", "none", GpuImages, needs_gpu=True,
        note="our own short version of airbench's loader: the decoded set on the GPU, crops and flips by indexing",
    ),
)  # fmt: skip
