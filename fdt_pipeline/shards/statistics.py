"""Pixel mean and standard deviation of each channel, summed exactly in integers as the images go by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..sources.source import I64, U8

# Pixels are added up in rows of this many: long enough for NumPy's vector loops (0.3 ns a value; a sum over rows of
# 3 takes 3 ns); a block of 65,537 rows could overflow 32 bits. Small images are put together first: one of 32x32x3
# takes 3 us instead of 21.
_PIXELS_A_ROW = 64
_ROWS_A_BLOCK = 1024  # of 200 kB, so that what is made of them stays in the cache, and no new memory is asked for
_VALUES = np.arange(256, dtype=np.int64)
_TOGETHER = 1 << 18


@dataclass
class PixelStatistics:
    """Integers do not round, so the result depends neither on the order of the samples nor on who added which."""

    num_pixels: int = 0
    sums: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    _pending: list[U8] = field(default_factory=list, repr=False, compare=False)
    _counts: I64 | None = field(default=None, repr=False, compare=False)

    def add(self, image: U8) -> None:
        """u8[h w c]; ValueError if the number of channels changes."""
        num_channels = image.shape[2]
        self._check_channels(num_channels)
        if not self.sums:
            self.sums, self.squares = [0] * num_channels, [0] * num_channels
        self.num_pixels += image.shape[0] * image.shape[1]
        self._pending.append(image.reshape(-1))
        if len(self._pending) >= 64 or image.size >= _TOGETHER:
            self.settle()

    def add_counts(self, counts: I64) -> None:
        """i64[c 256]: how many pixels of an image have which value; the same as adding the image."""
        self._check_channels(len(counts))
        if not self.sums:
            self.sums, self.squares = [0] * len(counts), [0] * len(counts)
        self.num_pixels += int(counts[0].sum())
        self._counts = counts if self._counts is None else self._counts + counts

    def merge(self, other: PixelStatistics) -> None:
        """Add what another has seen."""
        if not other.num_pixels:
            return
        self._check_channels(len(other.sums))
        for statistics in (self, other):
            statistics.settle()
        nothing = [0] * len(other.sums)
        self.sums = [a + b for a, b in zip(self.sums or nothing, other.sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or nothing, other.squares, strict=True)]
        self.num_pixels += other.num_pixels

    def settle(self) -> None:
        """Bring sums and squares up to date."""
        if self._pending:
            values = np.concatenate(self._pending) if len(self._pending) > 1 else self._pending[0]
            self._pending = []
            self._add_sums(*_sums(values.reshape(-1, len(self.sums))))
        if self._counts is not None:
            counts, self._counts = self._counts, None
            self._add_sums((counts @ _VALUES).tolist(), (counts @ _VALUES**2).tolist())

    def _add_sums(self, sums: list[int], squares: list[int]) -> None:
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, squares, strict=True)]

    @property
    def mean(self) -> tuple[float, ...]:
        """In 0..255."""
        self.settle()
        return tuple(total / self.num_pixels for total in self.sums)

    @property
    def std(self) -> tuple[float, ...]:
        """In 0..255, over all pixels (not n - 1); the difference under the root is exact."""
        self.settle()
        n = self.num_pixels
        return tuple(math.sqrt(n * q - s * s) / n for s, q in zip(self.sums, self.squares, strict=True))

    def _check_channels(self, got: int) -> None:
        if self.sums and got != len(self.sums):
            raise ValueError(f"expected {len(self.sums)} channels as in the images before, got {got}")


def _sums(pixels: U8) -> tuple[list[int], list[int]]:
    """u8[n c] -> sums of values and of squares, [c] each."""
    num_channels = pixels.shape[1]
    whole = len(pixels) // _PIXELS_A_ROW * _PIXELS_A_ROW
    sums, squares = _sums_of_rows(pixels[whole:])
    rows = pixels[:whole].reshape(-1, _PIXELS_A_ROW * num_channels)
    for first in range(0, len(rows), _ROWS_A_BLOCK):
        more = _sums_of_rows(rows[first : first + _ROWS_A_BLOCK])
        sums, squares = (
            total + part.reshape(-1, num_channels).sum(0) for total, part in zip((sums, squares), more, strict=True)
        )
    return sums.tolist(), squares.tolist()


def _sums_of_rows(rows: U8) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """u8[m k] -> i64[k] twice; m < 65,537."""
    values = rows.sum(0, dtype=np.uint32)
    squares = np.square(rows, dtype=np.uint16).sum(0, dtype=np.uint32)
    return values.astype(np.int64), squares.astype(np.int64)
