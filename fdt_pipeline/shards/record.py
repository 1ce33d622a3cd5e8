"""What is known of a task that is done: its tars, and what the manifest says of their samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..sources.source import I64, U8
from .manifest import Quarantined, Shard

_VALUES = np.arange(256, dtype=np.int64)
# Pixel values that are counted at once: small images are put together, as one of 32x32x3 alone takes 21 us and not 2.
_TOGETHER = 1 << 18


class PixelStatistics:
    """Mean and standard deviation of each channel, from how many pixels have which value: integers do not round, so the
    result depends neither on the order of the samples nor on the process that added them."""

    def __init__(self, counts: I64 | None = None) -> None:
        """counts i64[c 256]."""
        self._counts = counts
        self._pending: list[U8] = []
        self._num_pending = 0

    def add(self, image: U8) -> None:
        """u8[h w c]; ValueError if the number of channels changes."""
        if self._pending and image.shape[2] != self._pending[0].shape[1]:
            self._count()
        if not self._pending:
            self._check_channels(image.shape[2])
        self._pending.append(image.reshape(-1, image.shape[2]))
        self._num_pending += image.size
        if self._num_pending >= _TOGETHER:
            self._count()

    def add_counts(self, counts: I64) -> None:
        """i64[c 256]: how many pixels of an image have which value; the same as adding the image."""
        self._check_channels(len(counts))
        self._counts = counts if self._counts is None else self._counts + counts

    @property
    def counts(self) -> I64 | None:
        """i64[c 256]; None if nothing was added."""
        self._count()
        return self._counts

    @property
    def mean(self) -> tuple[float, ...]:
        """In 0..255."""
        return tuple(total / n for n, total, _ in self._sums())

    @property
    def std(self) -> tuple[float, ...]:
        """In 0..255, over all pixels (not n - 1); the difference under the root is exact."""
        return tuple(math.sqrt(n * squares - total * total) / n for n, total, squares in self._sums())

    def _sums(self) -> Iterable[tuple[int, int, int]]:
        """(number, sum, sum of squares) of the values of each channel."""
        counts = self.counts
        assert counts is not None
        return zip(counts.sum(1).tolist(), (counts @ _VALUES).tolist(), (counts @ _VALUES**2).tolist(), strict=True)

    def _count(self) -> None:
        """Count the pending pixels. Pillow takes 0.6 ns a value; NumPy's sums over rows took 0.9, bincount 2."""
        pending, self._pending, self._num_pending = self._pending, [], 0
        if not pending:
            return
        pixels = np.concatenate(pending)
        num_channels = pixels.shape[1]
        for begin in range(0, len(pixels), _TOGETHER):
            block = pixels[None, begin : begin + _TOGETHER]
            image = Image.fromarray(block[..., 0] if num_channels == 1 else block)
            self.add_counts(np.array(image.histogram(), np.int64).reshape(num_channels, 256))

    def _check_channels(self, got: int) -> None:
        if self._counts is not None and got != len(self._counts):
            raise ValueError(f"expected {len(self._counts)} channels as in the images before, got {got}")


@dataclass
class Gathered:
    """What is summed up over the samples that were written; the order of the tasks does not matter."""

    samples_per_class: Counter[int] = field(default_factory=Counter)
    samples_per_extension: Counter[str] = field(default_factory=Counter)
    smallest: tuple[int, ...] | None = None  # of the shapes (h, w, c) in lexical order, and the largest:
    largest: tuple[int, ...] | None = None  # they are equal where all are
    statistics: PixelStatistics = field(default_factory=PixelStatistics)
    keys: dict[str, str] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)

    def see_shape(self, shape: tuple[int, ...]) -> None:
        self.smallest = min(self.smallest or shape, shape)
        self.largest = max(self.largest or shape, shape)

    def merge(self, other: Gathered) -> None:
        self.samples_per_class.update(other.samples_per_class)
        self.samples_per_extension.update(other.samples_per_extension)
        for shape in (other.smallest, other.largest):
            if shape:
                self.see_shape(shape)
        if other.statistics.counts is not None:
            self.statistics.add_counts(other.statistics.counts)
        self.keys.update(other.keys)
        self.quarantine += other.quarantine


@dataclass(frozen=True)
class Record:
    """task: its number. plan: fingerprint of the plan it belongs to. state: of the files that it was made of. parts:
    its tars, by their names in the staging folder."""

    task: int
    plan: str
    state: str
    parts: tuple[Shard, ...]
    gathered: Gathered

    def to_json(self) -> str:
        gathered, counts = self.gathered, self.gathered.statistics.counts
        return json.dumps(
            {
                "task": self.task,
                "plan": self.plan,
                "state": self.state,
                "parts": [asdict(part) for part in self.parts],
                "samples_per_class": sorted(gathered.samples_per_class.items()),
                "samples_per_extension": gathered.samples_per_extension,
                "shapes": [gathered.smallest, gathered.largest],
                "pixel_counts": None if counts is None else counts.tolist(),
                "keys": gathered.keys,
                "quarantine": [asdict(sample) for sample in gathered.quarantine],
            }
        )


def record_from_json(text: str) -> Record:
    """The record that `to_json` wrote; ValueError, KeyError or TypeError for another text."""
    content: dict[str, Any] = json.loads(text)
    smallest, largest = (tuple(shape) if shape else None for shape in content["shapes"])
    counts = content["pixel_counts"]
    gathered = Gathered(
        Counter(dict(content["samples_per_class"])),
        Counter(content["samples_per_extension"]),
        smallest,
        largest,
        PixelStatistics(None if counts is None else np.array(counts, np.int64)),
        content["keys"],
        [Quarantined(**sample) for sample in content["quarantine"]],
    )
    parts = tuple(Shard(**part) for part in content["parts"])
    return Record(content["task"], content["plan"], content["state"], parts, gathered)


def merged(records: Iterable[Record]) -> Gathered:
    total = Gathered()
    for record in records:
        total.merge(record.gathered)
    return total
