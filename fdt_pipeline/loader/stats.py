"""What a loader has done so far, and named ranges of time for profilers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fdt_pipeline.definition.superposition import FDT
from fdt_pipeline.sources.source import I64

_NAMED = 100  # bad samples that are kept by name
_ENOUGH = 0.95  # of the images per output that there would be were no class missing


@dataclass(frozen=True)
class LoaderStats:
    """Of all iterations of a loader on this rank.

    batches, images: what the consumer has been given. wait_seconds: how long it waited for that, in all.
    bad_samples: how often another sample took a bad one's place; bad: the first 100 of them, each named once, with what
    was wrong. windows: mix windows used (streaming). images_per_output: the expected number of images in a sum, by the
    classes that the mixed windows so far held; images_per_output_of_all: the same if no class had been missing. Both
    are 0 before the first one, and in resident mode, where no class is ever missing.
    """

    batches: int = 0
    images: int = 0
    wait_seconds: float = 0.0
    bad_samples: int = 0
    bad: tuple[str, ...] = ()
    windows: int = 0
    images_per_output: float = 0.0
    images_per_output_of_all: float = 0.0


class StatsCounter:
    """Keeps the `LoaderStats` of a loader at work."""

    def __init__(self) -> None:
        self.now = LoaderStats()

    def add(self, **amounts: Any) -> None:
        """To the fields of these names."""
        self.now = replace(self.now, **{name: getattr(self.now, name) + amount for name, amount in amounts.items()})

    def add_bad(self, replaced: Sequence[str]) -> None:
        self.add(bad_samples=len(replaced))
        for text in replaced:
            if text not in self.now.bad and len(self.now.bad) < _NAMED:
                self.add(bad=(text,))
                warnings.warn(f"another sample takes the place of a bad one: {text}", stacklevel=2)


class ClassWatch:
    """Warns, once, of windows that lack so many classes that fewer images are superposed than asked."""

    def __init__(self, fdt: FDT, samples_per_class: Sequence[int], warns: bool = True) -> None:
        self.fdt, self.counts = fdt, np.array(samples_per_class, np.int64)
        self.num_classes = int((self.counts > 0).sum())
        self._has_warned = not warns
        self._num_windows = 0

    def images_per_output(self, num_classes: int) -> float:
        """The mean K of sums within a window of so many classes."""
        lowest = min(self.fdt.min_images, num_classes)
        highest = self.fdt.most_images(num_classes)
        return 1 + self.fdt.probability * ((lowest + highest) / 2 - 1)

    def add(self, labels: I64, stats: StatsCounter) -> None:
        """labels i64[n]: of a window."""
        found = len(np.unique(labels))
        of_all, before = self.images_per_output(self.num_classes), stats.now
        self._num_windows += 1
        mean = before.images_per_output + (self.images_per_output(found) - before.images_per_output) / self._num_windows
        stats.now = replace(before, images_per_output=mean, images_per_output_of_all=of_all)
        if self._has_warned or mean >= _ENOUGH * of_all:
            return
        self._has_warned = True
        warnings.warn(
            f"mix windows of {len(labels)} samples lack classes: this one has {found} of {self.num_classes}, so "
            f"{mean:.2f} images are superposed on average instead of {of_all:.2f}; "
            f"pass mix_window={enough_samples(self.counts)} or more, memory allowing, and shuffle the set when it is "
            "sharded",
            stacklevel=2,
        )


def enough_samples(samples_per_class: I64) -> int:
    """The window, in samples at random, that lacks 1 % of the classes on average: sum_c (1 - p_c)^window <= 0.01 C."""
    shares = samples_per_class[samples_per_class > 0] / samples_per_class.sum()
    total = int(samples_per_class.sum())

    def lacks(window: int) -> float:
        return float(np.exp(window * np.log1p(-np.minimum(shares, 1 - 1e-12))).sum())

    least, most = 1, total
    while least < most:
        window = (least + most) // 2
        least, most = (least, window) if lacks(window) <= 0.01 * len(shares) else (window + 1, most)
    return least


@contextmanager
def annotated(name: str) -> Iterator[None]:
    """A named range, as torch.profiler and, where CUDA is in use, NVTX show it. A range of torch's takes 10 us and
    more, so it is made only while its profiler looks on."""
    with ExitStack() as ranges:
        if torch.autograd._profiler_enabled():
            ranges.enter_context(torch.autograd.profiler.record_function(name))
        if torch.cuda.is_initialized():
            torch.cuda.nvtx.range_push(name)
            ranges.callback(torch.cuda.nvtx.range_pop)
        yield
