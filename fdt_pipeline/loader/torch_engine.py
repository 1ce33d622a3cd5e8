"""The torch engine: what the native operators do, on the CPU, where they cannot be had.

Plans are drawn in NumPy (definition/plans.py) and images are summed in torch.
It needs no compiler, and is many times slower. A pool is kept padded, so that a shifted crop is a strided view of it
and `index_select` fetches shift and all in one pass, 4 to 7 times faster than advanced indexing (README.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fdt_pipeline.definition.mixing import Mix, is_led
from fdt_pipeline.definition.plans import Plans, batch_targets, draw_plans
from fdt_pipeline.definition.superposition import Pool, epoch_order
from fdt_pipeline.loader.engines import Incoming, Made, SpanBatch
from fdt_pipeline.loader.mixes import keeps_ring
from fdt_pipeline.loader.options import Mixing, Output
from fdt_pipeline.loader.prefetch import prefetched
from fdt_pipeline.loader.running import Outputs
from fdt_pipeline.sources.source import I64

# Bytes of u8 crops summed at a time, 8 MB of floats. A batch of C = 100 in one piece, 150 MB, would spend its time in
# page faults.
_CHUNK_BYTES = 1 << 21


class TorchResident:
    """Draws from images in memory. in_order: output i is image i (evaluation)."""

    def __init__(
        self, mixing: Mixing, images: npt.NDArray[np.uint8], labels: Pool, prefetch: int, in_order: bool
    ) -> None:
        self.mixing, self.labels, self.prefetch, self.in_order = mixing, labels, prefetch, in_order
        self.images = ImagePool(torch.from_numpy(images), mixing.augment.pad)

    def run(self, inputs: Iterator[SpanBatch], mix: Mix | None) -> Made[SpanBatch]:
        """As `engines.ResidentEngine` has it, one batch at a time."""
        mixing = self.mixing.of(mix)
        return prefetched((self._made(batch, mixing) for batch in inputs), self.prefetch)

    def _made(self, batch: SpanBatch, mixing: Mixing) -> tuple[SpanBatch, Outputs]:
        [span] = batch.spans
        indices = span.numbers()
        leaders = None
        if is_led(mixing.mix):
            leaders = indices if self.in_order else self._order(batch.epoch)[indices]
        return batch, _superposed(mixing, self.images, self.labels, batch.epoch, indices, leaders)

    def _order(self, epoch: int) -> I64:
        """The permutation of an epoch, kept for its other batches."""
        if self._kept_order is None or self._kept_order[0] != epoch:
            self._kept_order = epoch, epoch_order(self.mixing.seed, epoch, len(self.labels))
        return self._kept_order[1]

    _kept_order: tuple[int, I64] | None = None


class TorchStreaming:
    """Mixes within a ring, or within each batch."""

    decodes, together = False, 1

    def __init__(self, mixing: Mixing, ring: int, prefetch: int) -> None:
        self.mixing, self.ring, self.prefetch = mixing, ring, prefetch

    def run(self, inputs: Iterator[list[Incoming]], mix: Mix | None) -> Made[list[Incoming]]:
        """As `engines.StreamingEngine` has it."""
        return prefetched(self._made(inputs, self.mixing.of(mix), keeps_ring(mix)), self.prefetch)

    def _made(self, inputs: Iterator[list[Incoming]], mixing: Mixing, has_ring: bool) -> Made[list[Incoming]]:
        ring: ImageRing | None = None
        for group in inputs:
            [batch] = group
            images, labels, places = torch.from_numpy(batch.images), batch.samples.labels[:, 0], np.arange(batch.size)
            if has_ring:
                ring = ring or ImageRing(self.ring, batch.images.shape[1:], mixing.augment.pad)
                places = ring.put(batch.position, images, labels)
                labels = ring.labels
            if batch.has_outputs:
                pool = ring.images if ring else ImagePool(images, mixing.augment.pad)
                indices, leaders = batch.first + np.arange(batch.size), places if is_led(mixing.mix) else None
                labelled = Pool(labels, mixing.num_classes)
                yield group, _superposed(mixing, pool, labelled, batch.epoch, indices, leaders)
            else:
                yield group, Outputs([torch.empty(1, batch.size)] * 2, lent=False)


class ImageRing:
    """The last `capacity` images u8[h w c] of a stream: image number p in slot p % capacity. labels i64[n]: of the
    slots that have one."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], pad: int) -> None:
        self.capacity = capacity
        self.images = ImagePool(torch.zeros((capacity, *shape), dtype=torch.uint8), pad)
        self.labels = np.empty(0, np.int64)

    def put(self, position: int, images: torch.Tensor, labels: I64) -> I64:
        """-> the slots of these images. At position 0 the ring is emptied."""
        num = min(self.capacity, position + len(labels))
        kept = self.labels if position else self.labels[:0]
        self.labels = np.append(kept, np.zeros(max(0, num - len(kept)), np.int64))
        slots = np.arange(position, position + len(labels)) % self.capacity
        self.labels[slots] = labels
        self.images.set(slots, images)
        return slots


def _superposed(
    mixing: Mixing, images: ImagePool, labels: Pool, epoch: int, indices: I64, leaders: I64 | None
) -> Outputs:
    size = images.h, images.w
    plans = draw_plans(mixing.seed, epoch, indices, labels, mixing.mix, mixing.augment, leaders, size)
    if mixing.soft:
        targets = torch.from_numpy(batch_targets(plans, mixing.num_classes, mixing.mix.targets))
    else:
        targets = torch.from_numpy(plans.classes[plans.offsets[:-1]])
    return Outputs([superpose(images, plans, mixing.output)[None], targets[None]], lent=False)


class ImagePool:
    """u8[n h w c] images, kept as u8[n h+2*pad w+2*pad c] with a zero frame."""

    def __init__(self, images: torch.Tensor, pad: int) -> None:
        _, h, w, c = images.shape
        self.h, self.w, self.c = h, w, c
        self.padded = images.contiguous() if not pad else F.pad(images, (0, 0, pad, pad, pad, pad))
        self.height, self.width = h + 2 * pad, w + 2 * pad

    def set(self, numbers: I64, images: torch.Tensor) -> None:
        """Put images u8[n h w c] in the place of those of these numbers."""
        pad = (self.height - self.h) // 2
        self.padded[torch.from_numpy(numbers), pad : pad + self.h, pad : pad + self.w] = images

    def starts(self, plans: Plans) -> npt.NDArray[np.int64]:
        """i64[m]: the place of each constituent's crop, counted in pixels of the padded images."""
        return (plans.images * self.height + plans.dy) * self.width + plans.dx

    def crops(self, starts: torch.Tensor) -> torch.Tensor:
        """i64[m] -> u8[m h w*c]: the h x w window that begins at each place."""
        num_starts = self.padded.numel() // self.c - (self.h - 1) * self.width - self.w + 1
        strides = (self.c, self.width * self.c, 1)
        return self.padded.as_strided((num_starts, self.h, self.w * self.c), strides).index_select(0, starts)

    def augmented(self, plans: Plans, number: int) -> npt.NDArray[np.uint8]:
        """u8[h w c], a view: one constituent of them, shifted and flipped."""
        top, left = plans.dy[number], plans.dx[number]
        crop = self.padded[plans.images[number]].numpy()[top : top + self.h, left : left + self.w]
        return crop[:, ::-1] if plans.flip[number] else crop


def superpose(pool: ImagePool, plans: Plans, output: Output) -> torch.Tensor:
    """-> f32 or f16 [n channels h w], standardized: for every plan sum_i F_i augment(I_i), or the second image in its
    box of the first."""
    top, left, bottom, right = plans.boxes.T
    boxed = np.flatnonzero((bottom - top) * (right - left))
    seconds = plans.offsets[boxed] + 1
    weights = plans.weights.copy()
    weights[seconds - 1], weights[seconds] = 1, 0
    pixels = _sums(pool, plans, weights)
    shown = pixels.numpy()
    for row, second in zip(boxed.tolist(), seconds.tolist(), strict=True):
        box = slice(top[row], bottom[row]), slice(left[row], right[row])
        shown[row][box] = pool.augmented(plans, second)[box]
    return _finished(pixels, output)


def _sums(pool: ImagePool, plans: Plans, given: npt.NDArray[np.float32]) -> torch.Tensor:
    """-> f32[n h w c] in 0..255: sums of augmented images with these weights f32[m].

    Flips are linear: the images to be mirrored get a sum (a bag) of their own in every output, mirrored once.
    """
    bags = 2 * plans.rows() + plans.flip
    order = np.argsort(bags, kind="stable")
    starts, weights = torch.from_numpy(pool.starts(plans)[order]), torch.from_numpy(given[order])
    bag_starts = torch.from_numpy(np.searchsorted(bags[order], np.arange(2 * len(plans))))
    sums = torch.empty((len(plans), pool.h, pool.w, pool.c))
    for first, last in _chunks(plans.offsets, _CHUNK_BYTES // (pool.h * pool.w * pool.c)):
        part = slice(int(plans.offsets[first]), int(plans.offsets[last]))
        crops = pool.crops(starts[part]).flatten(1).float()
        begins = bag_starts[2 * first : 2 * last] - part.start
        numbers = torch.arange(len(crops))
        summed = F.embedding_bag(numbers, crops, begins, mode="sum", per_sample_weights=weights[part])
        kept, mirrored = summed.view(last - first, 2, pool.h, pool.w, pool.c).unbind(1)
        torch.add(kept, mirrored.flip(2), out=sums[first:last])
    return sums


def _chunks(offsets: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of plans with up to `most` constituents, or one plan."""
    first = 0
    while first < len(offsets) - 1:
        last = max(int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1, first + 1)
        yield first, last
        first = last


def _finished(pixels: torch.Tensor, output: Output) -> torch.Tensor:
    """f32[n h w c] in [0, 255] -> [n channels h w]: gray repeated if asked, standardized, cast, laid out."""
    mean, std = torch.tensor(output.mean), torch.tensor(output.std)
    standardized = ((pixels - mean) / std).to(output.dtype).permute(0, 3, 1, 2)
    layout = torch.channels_last if output.channels_last else torch.contiguous_format
    return standardized.contiguous(memory_format=layout)
