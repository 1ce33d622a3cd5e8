"""Pixel mean and standard deviation of each channel, summed exactly in integers as the images go by."""

from __future__ import annotations

import math

import numpy as np

from ..sources.source import U8


class PixelStatistics:
    """Integers do not round, so the result does not depend on the order of the samples, nor on the seed."""

    def __init__(self) -> None:
        self.num_pixels = 0
        self.sums: list[int] = []
        self.squares: list[int] = []

    def add(self, image: U8) -> None:
        """u8[h w c]; ValueError if the number of channels changes."""
        sums = image.sum(axis=(0, 1), dtype=np.int64).tolist()
        squares = np.square(image, dtype=np.uint16).sum(axis=(0, 1), dtype=np.int64).tolist()
        if self.num_pixels and len(sums) != len(self.sums):
            raise ValueError(f"expected {len(self.sums)} channels as in the images before, got {len(sums)}")
        self.sums = [a + b for a, b in zip(self.sums or [0] * len(sums), sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or [0] * len(sums), squares, strict=True)]
        self.num_pixels += image.shape[0] * image.shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """In 0..255."""
        return tuple(total / self.num_pixels for total in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """In 0..255, over all pixels (not n - 1); the difference under the root is exact."""
        n = self.num_pixels
        return tuple(math.sqrt(n * q - s * s) / n for s, q in zip(self.sums, self.squares, strict=True))
