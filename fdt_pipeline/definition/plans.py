"""Many plans at once: the same decisions as `superposition.draw_plan`, bit for bit, for a whole batch in NumPy.

Plans are ragged (K differs), so they are kept as one flat array a field, with row i at offsets[i]:offsets[i+1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.philox import Stream, bounded32, bounded64, random_words
from fdt_pipeline.definition.series import Series, checked_weights
from fdt_pipeline.definition.superposition import FDT, I64, NO_AUGMENT, Augment, Plan, Pool, image_range

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plans:
    """n plans with m constituents in all."""

    offsets: I64  # [n + 1]
    images: I64  # [m] positions in the pool
    classes: I64  # [m]
    weights: F32  # [m]
    dy: I64  # [m]
    dx: I64  # [m]
    flip: npt.NDArray[np.bool_]  # [m]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def num_images(self) -> I64:
        """i64[n]: K of each plan."""
        return np.diff(self.offsets)

    def rows(self) -> I64:
        """i64[m]: the plan that each constituent belongs to."""
        return np.repeat(np.arange(len(self)), self.num_images())

    def __getitem__(self, i: int) -> Plan:
        part = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        weights = self.weights[part].astype(np.float64)
        return Plan(self.images[part], self.classes[part], weights, self.dy[part], self.dx[part], self.flip[part])


def draw_plans(
    seed: int,
    epoch: int,
    indices: npt.ArrayLike,
    pool: Pool,
    fdt: FDT,
    augment: Augment = NO_AUGMENT,
    leaders: npt.ArrayLike | None = None,
) -> Plans:
    """Plans of outputs `indices` i64[n] of `epoch`; leaders i64[n] as in `superposition.draw_plan`."""
    indices = np.asarray(indices, np.int64)
    if (leaders is not None) != (fdt.anchor == "epoch"):
        raise ValueError(
            f'leaders must be given with anchor "epoch" and only then, got {leaders!r} with {fdt.anchor!r}'
        )
    num_images = _draw_num_images(random_words(seed, Stream.PLAN, epoch, indices, 0), pool, fdt)
    offsets = np.concatenate([[0], np.cumsum(num_images)])
    rows = np.repeat(np.arange(len(indices)), num_images)
    step = np.arange(offsets[-1]) - offsets[rows]
    words = random_words(seed, Stream.PLAN, epoch, indices[rows], step + 1)
    images = _draw_images(words, offsets, pool, None if leaders is None else np.asarray(leaders, np.int64))
    shifts = 2 * augment.pad + 1
    return Plans(
        offsets=offsets,
        images=images,
        classes=pool.labels[images],
        weights=batch_weights(fdt.series, num_images),
        dy=bounded32(words[:, 2], shifts),
        dx=bounded32(words[:, 3], shifts),
        flip=(words[:, 3] & 1).astype(bool) & augment.flip,
    )


def _draw_num_images(words: npt.NDArray[np.uint32], pool: Pool, fdt: FDT) -> I64:
    lowest, highest = image_range(fdt, pool)
    num_images = lowest + bounded64(words[:, 0], words[:, 1], highest - lowest + 1)
    return np.where(words[:, 2] >= np.uint64(round(fdt.probability * 2**32)), 1, num_images)


def _draw_images(words: npt.NDArray[np.uint32], offsets: I64, pool: Pool, leaders: I64 | None) -> I64:
    """i64[m]: one round for the first image of every plan, one for the second of those that have one, and so on."""
    num_images = np.diff(offsets)
    images = np.empty(len(words), np.int64)
    unused = np.broadcast_to(pool.counts, (len(num_images), pool.num_classes)).copy()
    active = np.arange(len(num_images))
    for i in range(int(num_images.max(initial=0))):
        active = active[num_images[active] > i]
        at = offsets[active] + i
        if i == 0 and leaders is not None:
            images[at] = leaders[active]
        else:
            images[at] = _pick(unused[active], words[at], pool)
        unused[active, pool.labels[images[at]]] = 0
    return images


def _pick(unused: I64, words: npt.NDArray[np.uint32], pool: Pool) -> I64:
    """unused i64[n c], u32[n 4] -> i64[n]: for each row the image at a uniform rank among its unused ones."""
    upto = np.cumsum(unused, axis=1)
    rank = bounded64(words[:, 0], words[:, 1], upto[:, -1])
    label = (upto <= rank[:, None]).sum(axis=1)
    row = np.arange(len(rank))
    return pool.by_class[pool.starts[label] + rank - (upto[row, label] - unused[row, label])]


def batch_weights(series: Series, num_images: I64) -> F32:
    """i64[n] -> f32[sum of num_images]: the weights of each plan, one after the other."""
    weights = {k: checked_weights(series, k).astype(np.float32) for k in set(num_images.tolist())}
    return np.concatenate([weights[k] for k in num_images.tolist()] or [np.empty(0, np.float32)])


def batch_targets(plans: Plans, num_classes: int, targets: str = "soft") -> F32:
    """f32[n num_classes], rows sum to 1: the soft targets, or one-hot of each first image's class ("dominant")."""
    batch = np.zeros((len(plans), num_classes), np.float32)
    if targets == "dominant":
        batch[np.arange(len(plans)), plans.classes[plans.offsets[:-1]]] = 1
    else:
        batch[plans.rows(), plans.classes] = plans.weights
    return batch
