"""Many plans at once: the same decisions as `superposition.draw_plan`, bit for bit, for a whole batch in NumPy.

Plans are ragged (K differs), so they are kept as one flat array a field, with row i at offsets[i]:offsets[i+1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.mixing import (
    FDT,
    LAMBDA_ONE,
    QUANTILE_BITS,
    CutMix,
    Mix,
    Single,
    beta_quantiles,
    branches,
    is_led,
)
from fdt_pipeline.definition.philox import Stream, bounded32, bounded64, random_words
from fdt_pipeline.definition.series import Series, checked_weights
from fdt_pipeline.definition.superposition import (
    F64,
    I64,
    NO_AUGMENT,
    Augment,
    Plan,
    Pool,
    area_weights,
    checked_size,
    image_range,
    smooth_targets,
)

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
    boxes: I64  # [n 4] top, left, bottom, right: there the second image is shown, elsewhere the first. No area: none
    label_smoothing: F64  # [n]

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
        top, left, bottom, right = self.boxes[i].tolist()
        return Plan(
            self.images[part],
            self.classes[part],
            self.weights[part].astype(np.float64),
            self.dy[part],
            self.dx[part],
            self.flip[part],
            (top, left, bottom, right),
            float(self.label_smoothing[i]),
        )


def draw_plans(
    seed: int,
    epoch: int,
    indices: npt.ArrayLike,
    pool: Pool,
    mix: Mix,
    augment: Augment = NO_AUGMENT,
    leaders: npt.ArrayLike | None = None,
    size: tuple[int, int] | None = None,
) -> Plans:
    """Plans of outputs `indices` i64[n] of `epoch`; leaders i64[n] and size as in `superposition.draw_plan`."""
    indices = np.asarray(indices, np.int64)
    if (leaders is not None) != is_led(mix):
        raise ValueError(f'leaders must be given with anchor "epoch" and only then, got {leaders!r} with {mix!r}')
    given = None if leaders is None else np.asarray(leaders, np.int64)
    first = random_words(seed, Stream.PLAN, epoch, indices, 0)
    found = branches(mix)
    branch = np.searchsorted([one.end for one in found], first[:, 2], side="right")
    num_images = np.ones(len(indices), np.int64)
    for number, one in enumerate(found):
        rows = (branch == number) & (first[:, 2] < np.uint64(one.mixed_end))
        lowest, highest = image_range(one, pool)
        num_images[rows] = lowest + bounded64(first[rows, 0], first[rows, 1], highest - lowest + 1)
    offsets = np.concatenate([[0], np.cumsum(num_images)])
    plan = np.repeat(np.arange(len(indices)), num_images)
    step = np.arange(offsets[-1]) - offsets[plan]
    words = random_words(seed, Stream.PLAN, epoch, indices[plan], step + 1)
    images, weights = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float32)
    boxes = np.zeros((len(indices), 4), np.int64)
    for number, one in enumerate(found):
        rows = np.flatnonzero(branch == number)
        at = np.flatnonzero(branch[plan] == number)
        led = given[rows] if given is not None and one.mixing.anchor == "epoch" else None
        inner = np.concatenate([[0], np.cumsum(num_images[rows])])
        images[at] = _draw_images(words[at], inner, pool, led, one.mixing.unique_classes)
        weights[at], boxes[rows] = _weights(one.mixing, first[rows], num_images[rows], size)
    shifts = 2 * augment.pad + 1
    return Plans(
        offsets=offsets,
        images=images,
        classes=pool.labels[images],
        weights=weights,
        dy=bounded32(words[:, 2], shifts),
        dx=bounded32(words[:, 3], shifts),
        flip=(words[:, 3] & 1).astype(bool) & augment.flip,
        boxes=boxes,
        label_smoothing=np.array([one.mixing.label_smoothing for one in found])[branch],
    )


def _weights(
    mixing: Single, first: npt.NDArray[np.uint32], num_images: I64, size: tuple[int, int] | None
) -> tuple[F32, I64]:
    """Words u32[n 4] of block 0, K i64[n] -> weights f32[sum of K], boxes i64[n 4]."""
    boxes = np.zeros((len(first), 4), np.int64)
    if isinstance(mixing, FDT):
        return batch_weights(mixing.series, num_images), boxes
    units = beta_quantiles(mixing.alpha)[first[:, 0] >> (32 - QUANTILE_BITS)]
    pairs = np.stack([units, LAMBDA_ONE - units], axis=1) / LAMBDA_ONE
    if isinstance(mixing, CutMix) and (num_images == 2).any():
        height, width = checked_size(size)
        boxes = draw_boxes(first, units, (height, width)) * (num_images == 2)[:, None]
        pairs = area_weights(boxes, (height, width))
    pairs[num_images == 1] = 1
    return pairs[np.arange(2) < num_images[:, None]].astype(np.float32), boxes


def draw_boxes(first: npt.NDArray[np.uint32], lambda_units: I64, size: tuple[int, int]) -> I64:
    """As `superposition.draw_box`, of n outputs: words u32[n 4], lambda i64[n] -> i64[n 4]."""
    share = 0.5 * np.sqrt(1 - lambda_units / LAMBDA_ONE)
    ends = []
    for word, length in ((first[:, 3], size[0]), (first[:, 1], size[1])):
        middle, half = bounded32(word, length), (share * length).astype(np.int64)
        ends.append((np.maximum(middle - half, 0), np.minimum(middle + half, length)))
    (top, bottom), (left, right) = ends
    return np.stack([top, left, bottom, right], axis=1)


def _draw_images(
    words: npt.NDArray[np.uint32], offsets: I64, pool: Pool, leaders: I64 | None, unique_classes: bool
) -> I64:
    """i64[m]: one round for the first image of every plan, one for the second of those that have one, and so on."""
    num_images = np.diff(offsets)
    if not unique_classes:
        images = pool.by_class[bounded64(words[:, 0], words[:, 1], len(pool))]
        if leaders is not None:
            images[offsets[:-1]] = leaders
        return images
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
    """f32[n num_classes], rows sum to 1: what `superposition.superpose_targets` gives for each plan."""
    batch = np.zeros((len(plans), num_classes), np.float32)
    if targets == "dominant":
        batch[np.arange(len(plans)), plans.classes[_heaviest(plans)]] = 1
    else:
        np.add.at(batch, (plans.rows(), plans.classes), plans.weights)
    return smooth_targets(batch, plans.label_smoothing[:, None])


def _heaviest(plans: Plans) -> I64:
    """i64[n]: where in the flat arrays each plan's largest weight is, the first of several."""
    order = np.lexsort((np.arange(len(plans.weights)), -plans.weights, plans.rows()))
    return order[plans.offsets[:-1]]
