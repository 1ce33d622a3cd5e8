"""What a loader has done so far, and named ranges of time for profilers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fdt_pipeline.definition.mixing import Mix
from fdt_pipeline.loader.mixes import are_equal, keeps_ring, mean_images
from fdt_pipeline.sources.source import I64

_NAMED = 100  # bad samples that are kept by name
_ENOUGH = 0.95  # of the images per output that there would be were no class missing


@dataclass(frozen=True)
class LoaderStats:
    """Of all iterations of a loader on this rank.

    batches, images: what the consumer has been given. wait_seconds: how long it waited for that, in all.
    bad_samples: how often another sample took a bad one's place; bad: the first 100 of them, each named once, with what
    was wrong. images_per_output: the expected number of images in an output, by the classes that were in streaming's
    ring (or batch) for each of the mixed batches so far; images_per_output_of_all: the same if no class had been
    missing. Both are 0 before the first one, and in resident mode, where no class is ever missing.
    """

    batches: int = 0
    images: int = 0
    wait_seconds: float = 0.0
    bad_samples: int = 0
    bad: tuple[str, ...] = ()
    images_per_output: float = 0.0
    images_per_output_of_all: float = 0.0


class StatsCounter:
    """Counts what `LoaderStats` of a loader at work say, in fields of the same names."""

    def __init__(self) -> None:
        self.batches = self.images = self.bad_samples = 0
        self.wait_seconds = self.images_per_output = self.images_per_output_of_all = 0.0
        self.bad: tuple[str, ...] = ()

    def now(self) -> LoaderStats:
        return LoaderStats(**vars(self))

    def add_bad(self, replaced: Collection[str]) -> None:
        self.bad_samples += len(replaced)
        for text in replaced:
            if text not in self.bad and len(self.bad) < _NAMED:
                self.bad += (text,)
                warnings.warn(f"another sample takes the place of a bad one: {text}", stacklevel=2)


class ClassWatch:
    """Counts the classes in the ring, or in each batch where there is none, and warns, once, if full ones lack so many
    that fewer images are superposed than asked."""

    def __init__(self, ring: int, num_samples: int, samples_per_class: Sequence[int], warns: bool = True) -> None:
        self.ring, self.samples_per_class = ring, np.array(samples_per_class, np.int64)
        self._num_classes = np.count_nonzero(self.samples_per_class)
        self._num_samples = num_samples  # of this rank
        self._labels = np.full(ring, -1)  # of each slot
        self._counts = np.zeros_like(self.samples_per_class)
        self._end = 0
        self._has_warned = not warns
        self._mix: Mix | None = None  # of the last batch
        self._full, self._mean_of_full, self._mixed = 0, 0.0, 0

    def come_in(self, position: int, labels: I64, has_ring: bool) -> None:
        """labels i64[n]: of a batch that comes into the ring, at this position of the epoch."""
        position = position if has_ring else 0
        if position == 0:
            self._labels, self._counts = np.full(self.ring, -1), np.zeros_like(self._counts)
        self._end = position + len(labels)
        slots = np.arange(position, self._end) % self.ring
        old = self._labels[slots]
        self._labels[slots] = labels
        number = len(self._counts)
        self._counts += np.bincount(labels, minlength=number) - np.bincount(old[old >= 0], minlength=number)

    def mixed(self, mix: Mix, stats: StatsCounter) -> None:
        """A batch has been mixed out of what has come in."""
        of_all = mean_images(mix, self._num_classes)
        found = mean_images(mix, np.count_nonzero(self._counts))
        self._mixed += 1
        stats.images_per_output += (found - stats.images_per_output) / self._mixed
        stats.images_per_output_of_all += (of_all - stats.images_per_output_of_all) / self._mixed
        if keeps_ring(mix) and self._end < min(self.ring, self._num_samples):
            return
        if not are_equal(mix, self._mix):
            self._mix, self._full, self._mean_of_full = mix, 0, 0.0
        self._full += 1
        self._mean_of_full += (found - self._mean_of_full) / self._full
        if not self._has_warned and self._mean_of_full < _ENOUGH * of_all:
            self._has_warned = True
            self._warn(of_all, keeps_ring(mix))

    def _warn(self, of_all: float, is_ring: bool) -> None:
        found, enough = np.count_nonzero(self._counts), enough_samples(self.samples_per_class)
        where = f"ring of {self.ring}" if is_ring else f"batch of {self._end}"
        advice = f"ring={enough} or more, memory allowing" if is_ring else f'batch_size={enough} or partners="ring"'
        warnings.warn(
            f"the {where} samples lacks classes: it has {found} of {self._num_classes}, so {self._mean_of_full:.2f} "
            f"images are superposed on average instead of {of_all:.2f}; pass {advice}, and shuffle the set when it is "
            "sharded",
            stacklevel=2,
        )


def enough_samples(samples_per_class: I64) -> int:
    """The ring, in samples at random, that lacks 1 % of the classes on average: sum_c (1 - p_c)^ring <= 0.01 C."""
    shares = samples_per_class[samples_per_class > 0] / samples_per_class.sum()
    total = int(samples_per_class.sum())

    def lacks(ring: int) -> float:
        return float(np.exp(ring * np.log1p(-np.minimum(shares, 1 - 1e-12))).sum())

    least, most = 1, total
    while least < most:
        ring = (least + most) // 2
        least, most = (least, ring) if lacks(ring) <= 0.01 * len(shares) else (ring + 1, most)
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
