"""What DALI's external_source is given: the batches of an epoch out of arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fdt_pipeline.sources.source import I64, U8

KEPT = 8  # batches; DALI has two queues of two under way, and reads them where they are


class ArrayEpochs:
    """Iterated, it gives an epoch: (u8[n h w c], i64[n]), a new permutation of the set; the last batch may be smaller.

    Rows are taken into one of a few arrays, which are used again: DALI need not copy them, and no memory is touched
    for the first time.
    """

    def __init__(self, images: U8, labels: I64, batch_size: int, seed: int) -> None:
        self._images, self._labels, self._batch_size = images, labels, batch_size
        self._rng = np.random.default_rng(seed)
        rows = min(batch_size, len(labels))
        self._kept = [(np.empty((rows, *images.shape[1:]), np.uint8), np.empty(rows, np.int64)) for _ in range(KEPT)]
        self._given = 0

    def __iter__(self) -> Iterator[tuple[U8, I64]]:
        order = self._rng.permutation(len(self._labels))
        for first in range(0, len(order), self._batch_size):
            yield self._taken(order[first : first + self._batch_size])

    def _taken(self, rows: I64) -> tuple[U8, I64]:
        images, labels = self._kept[self._given % KEPT]
        pixels, classes = images[: len(rows)], labels[: len(rows)]
        self._given += 1
        np.take(self._images, rows, axis=0, out=pixels, mode="clip")  # with mode="raise" NumPy would buffer it
        np.take(self._labels, rows, axis=0, out=classes, mode="clip")
        return pixels, classes
