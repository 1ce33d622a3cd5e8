"""What iterable loaders have in common: an epoch is one pass, and batches are moved to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..task import Task

Batch = tuple[Any, Any]


def to_device(batch: Batch, task: Task) -> Batch:
    """As trainers do with pinned batches; on the CPU nothing."""
    if task.device == "cpu":
        return batch
    images, targets = batch
    return images.to(task.device, non_blocking=True), targets.to(task.device, non_blocking=True)


class LoaderEpochs:
    """A contender out of any iterable; finish: what a trainer does to a batch before it is used; before_epoch(number):
    what it does to the loader before it begins one."""

    def __init__(
        self,
        loader: Any,
        finish: Callable[[Any], Batch],
        before_epoch: Callable[[int], object] = lambda number: None,
    ) -> None:
        self._loader, self._finish, self._before_epoch = loader, finish, before_epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        self._before_epoch(number)
        return map(self._finish, iter(self._loader))

    def close(self) -> None:
        """The workers of a DataLoader end when nothing holds it."""
        self._loader = None
