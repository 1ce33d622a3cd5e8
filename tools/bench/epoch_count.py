"""An epoch has as many images as the set: counted while batches are taken."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import RefusedError
from .task import Task


@dataclass
class EpochCount:
    """An epoch may have from `least` to `most` images."""

    least: int
    most: int
    images: int = 0

    @classmethod
    def of(cls, task: Task) -> EpochCount:
        """A worker may leave out its last batch."""
        total = task.manifest.num_samples
        return cls(max(1, total - max(1, task.num_workers) * task.batch_size + 1), total)

    @classmethod
    def none(cls) -> EpochCount:
        """Where epochs have no length."""
        return cls(1, 2**62)

    def add(self, images: int) -> None:
        """RefusedError where there are too many."""
        self.images += images
        if self.images > self.most:
            raise RefusedError(f"an epoch has {self.images} images or more, expected the set's {self.most}")

    def end(self, epoch: int) -> None:
        """RefusedError where there were too few; epoch -1 is none."""
        if epoch >= 0 and self.images < self.least:
            raise RefusedError(f"epoch {epoch} has {self.images} images, expected {self.least} to {self.most}")
        self.images = 0
