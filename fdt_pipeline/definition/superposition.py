"""What an output is, for every mixing: obvious and slow. Every engine must agree with it.

    FDT      K ~ Uniform{1..C};  F_i = (1/i) / H_K;  K images of pairwise different classes (Algorithm 2)
    MixUp    K = 2;  F = (lambda, 1 - lambda), lambda ~ Beta(alpha, alpha)
             image = sum_i F_i augment(I_i)                               target = sum_i F_i onehot(class of I_i)
    CutMix   K = 2;  F_2 = area of the box / area of the image, F_1 = 1 - F_2
             image = augment(I_2) inside the box, augment(I_1) outside    target as above

Sources: W. Fuhl, "Tensor Normalization and Full Distribution Training", arXiv 2109.02345, Eq. 2-4; for the others see
`mixing.py`. Where the printed algorithm is ambiguous the reading is named at the line that takes it. A plan is drawn
first; image and target are then made from the same plan, so they cannot disagree. Decisions are made in integers, but
for the side of a box, which takes one root: IEEE says what that is to the last bit, as it does of a division.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.mixing import (
    FDT,
    LAMBDA_ONE,
    QUANTILE_BITS,
    Branch,
    CutMix,
    Mix,
    beta_quantiles,
    branches,
    is_led,
)
from fdt_pipeline.definition.philox import Stream, bounded32, bounded64, permutation, random_words
from fdt_pipeline.definition.series import checked_weights

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Augment:
    """What is done to each constituent before the sum: zero padding of `pad` pixels on raw values, a random shift by
    up to `pad` in both directions, and a horizontal flip with odds 1/2 (readings of section 2: "each on its own")."""

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"Augment: pad must be 0 or more pixels, got {self.pad}")


NO_AUGMENT = Augment(pad=0, flip=False)


class Pool:
    """The labelled images that a plan may draw from: labels i64[n] and, for each class, where its images are."""

    def __init__(self, labels: npt.ArrayLike, num_classes: int) -> None:
        self.labels: I64 = np.asarray(labels, np.int64)
        if self.labels.ndim != 1 or not self.labels.size:
            raise ValueError(f"Pool: labels must be i64[n] with n >= 1, got shape {self.labels.shape}")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if wrong.size:
            raise ValueError(f"Pool: label {self.labels[wrong[0]]} of sample {wrong[0]} is outside [0, {num_classes})")
        self.num_classes = num_classes
        self.counts: I64 = np.bincount(self.labels, minlength=num_classes).astype(np.int64)
        self.by_class: I64 = np.argsort(self.labels, kind="stable").astype(np.int64)
        self.starts: I64 = np.cumsum(self.counts) - self.counts
        self.num_distinct = int((self.counts > 0).sum())

    def __len__(self) -> int:
        return len(self.labels)


Box = tuple[int, int, int, int]
NO_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """One output, decided: for each of its k constituents the image, its class, its weight, its shift and its flip."""

    images: I64  # [k] positions in the pool
    classes: I64  # [k]
    weights: F64  # [k] F_i, sum 1: of the targets, and where there is no box of the images
    dy: I64  # [k] first row of the crop in the padded image, 0..2*pad
    dx: I64  # [k] first column, likewise
    flip: npt.NDArray[np.bool_]  # [k]
    box: Box = NO_BOX  # top, left, bottom, right: there the second image is shown, elsewhere the first. No area: none
    label_smoothing: float = 0.0


def image_range(branch: Branch, pool: Pool) -> tuple[int, int]:
    """(lowest, highest) K of what a branch mixes of this pool: cut to the number of classes that have an image."""
    return branch.mixing.least_images(pool.num_distinct), branch.mixing.most_images(pool.num_distinct)


def epoch_order(seed: int, epoch: int, n: int) -> I64:
    """i64[n]: which sample leads output i of this epoch under anchor "epoch" and in plain training (resident)."""
    return permutation(seed, Stream.EPOCH_ORDER, epoch, n)


def draw_plan(
    seed: int,
    epoch: int,
    index: int,
    pool: Pool,
    mix: Mix,
    augment: Augment = NO_AUGMENT,
    leader: int | None = None,
    size: tuple[int, int] | None = None,
) -> Plan:
    """The plan of output `index` of `epoch`: a function of the arguments alone (Algorithm 2, lines 1-9).

    leader is the pool position of image 1 under anchor "epoch" (see `epoch_order`): to be given where that is the
    anchor of the mixing, or of one of several, and only then. size: (height, width) of the images, for CutMix.
    Random words: block 0 says whether and how to mix, block i gives constituent i.
    """
    if (leader is not None) != is_led(mix):
        raise ValueError(f'leader must be given with anchor "epoch" and only then, got {leader} with {mix!r}')
    first = random_words(seed, Stream.PLAN, epoch, index, 0)
    branch = next(branch for branch in branches(mix) if first[2] < branch.end)
    mixing = branch.mixing
    k = _draw_num_images(first, branch, pool)
    words = random_words(seed, Stream.PLAN, epoch, index, np.arange(1, k + 1))
    is_mine = leader is not None and mixing.anchor == "epoch"
    images = _draw_images(words, leader if is_mine else None, pool, mixing.unique_classes)
    weights, box = np.ones(1), NO_BOX
    if isinstance(mixing, FDT):
        weights = checked_weights(mixing.series, k)
    elif k == 2:
        units = beta_quantiles(mixing.alpha)[first[0] >> (32 - QUANTILE_BITS)]
        weights = np.array([units, LAMBDA_ONE - units]) / LAMBDA_ONE
        if isinstance(mixing, CutMix):
            box = draw_box(first, int(units), checked_size(size))
            weights = area_weights(box, checked_size(size))
    shifts = 2 * augment.pad + 1
    return Plan(
        images=images,
        classes=pool.labels[images],
        weights=weights,
        dy=bounded32(words[:, 2], shifts),
        dx=bounded32(words[:, 3], shifts),
        flip=(words[:, 3] & 1).astype(bool) & augment.flip,
        box=box,
        label_smoothing=mixing.label_smoothing,
    )


def _draw_num_images(words: npt.NDArray[np.uint32], branch: Branch, pool: Pool) -> int:
    """K ~ Uniform{lowest..highest} (reading: "RND with maximum C" is min(C, RND)), or 1 for an output left unmixed."""
    if words[2] >= branch.mixed_end:
        return 1
    lowest, highest = image_range(branch, pool)
    return lowest + int(bounded64(words[0], words[1], highest - lowest + 1))


def _draw_images(words: npt.NDArray[np.uint32], leader: int | None, pool: Pool, unique_classes: bool) -> I64:
    """Words u32[k 4] -> i64[k]."""
    unused = pool.counts.copy()
    images = np.empty(len(words), np.int64)
    for i, word in enumerate(words):
        images[i] = leader if i == 0 and leader is not None else _draw_image(word, unused, pool)
        if unique_classes:
            unused[pool.labels[images[i]]] = 0
    return images


def _draw_image(words: npt.NDArray[np.uint32], unused: I64, pool: Pool) -> int:
    """A uniform image among those whose class is still unused: the law of "RND(L) given C(j) not in C(GT)"."""
    rank = int(bounded64(words[0], words[1], unused.sum()))
    for label in range(pool.num_classes):
        if rank < unused[label]:
            return int(pool.by_class[pool.starts[label] + rank])
        rank -= int(unused[label])
    raise AssertionError("rank is below the number of unused images")


def checked_size(size: tuple[int, int] | None) -> tuple[int, int]:
    """ValueError for None."""
    if size is None:
        raise ValueError("CutMix needs the size of the images: pass size=(height, width)")
    return size


def draw_box(words: npt.NDArray[np.uint32], lambda_units: int, size: tuple[int, int]) -> Box:
    """The box of CutMix, in pixels, as torchvision makes it: words u32[4], lambda in units of 2**-24.

    Its middle is a uniform pixel, its sides are sqrt(1 - lambda) of the image's, and it is cut off at the edges.
    """
    share = 0.5 * math.sqrt(1 - lambda_units / LAMBDA_ONE)
    ends = []
    for word, length in ((words[3], size[0]), (words[1], size[1])):
        middle, half = int(bounded32(word, length)), int(share * length)
        ends.append((max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def area_weights(box: npt.ArrayLike, size: tuple[int, int]) -> F64:
    """Boxes i64[... 4] -> f64[... 2]: the shares of the image outside and inside of each."""
    top, left, bottom, right = np.moveaxis(np.asarray(box), -1, 0)
    area, inside = size[0] * size[1], (bottom - top) * (right - left)
    return np.stack([area - inside, inside], axis=-1) / area


def augment_image(image: npt.NDArray[np.uint8], dy: int, dx: int, flip: bool, pad: int) -> npt.NDArray[np.uint8]:
    """u8[h w c] -> u8[h w c]: pad with zeros, crop at (dy, dx), then mirror left to right."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    crop = padded[dy : dy + height, dx : dx + width]
    return crop[:, ::-1] if flip else crop


def superpose_images(plan: Plan, images: npt.NDArray[np.uint8], pad: int = 0) -> F64:
    """u8[n h w c] -> f64[h w c] in [0, 255]: D = sum_i F_i augment(I_i) (Eq. 3), never rounded; or image 2 in its box
    of image 1."""
    augmented = (
        augment_image(images[image], dy, dx, flip, pad)
        for image, dy, dx, flip in zip(plan.images, plan.dy, plan.dx, plan.flip, strict=True)
    )
    return superpose_constituents(plan, augmented)


def superpose_constituents(plan: Plan, augmented: Iterable[npt.NDArray[np.uint8]]) -> F64:
    """The same of the plan's own images, u8[h w c] each, which are asked for one after the other."""
    top, left, bottom, right = plan.box
    if (bottom - top) * (right - left) > 0:
        first, second = augmented
        total = first.astype(np.float64)
        total[top:bottom, left:right] = second[top:bottom, left:right]
        return total
    total = np.zeros((), np.float64)
    for weight, image in zip(plan.weights, augmented, strict=True):
        total = total + weight * image
    return total


def superpose_targets(plan: Plan, num_classes: int, targets: str = "soft") -> npt.NDArray[np.float32]:
    """f32[num_classes], sum 1: GT = sum_i F_i onehot(class of I_i) (Eq. 4), or one-hot of the class of the image with
    the largest weight ("dominant"); then smoothed. Weights of one class are added up in the order of the plan."""
    target = np.zeros(num_classes, np.float32)
    if targets == "dominant":
        target[plan.classes[np.argmax(plan.weights.astype(np.float32))]] = 1
    else:
        for label, weight in zip(plan.classes, plan.weights.astype(np.float32), strict=True):
            target[label] += weight
    return smooth_targets(target, plan.label_smoothing)


def smooth_targets(
    target: npt.NDArray[np.float32], smoothing: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """f32[... C] -> f32[... C]: (1 - s) t + s / C, with 1 - s and s / C as floats of 32 bits. Their product with t is
    exact in 64 bits, so that it makes no difference whether a machine multiplies and adds in one step."""
    kept = np.asarray(1 - np.asarray(smoothing), np.float32).astype(np.float64)
    share = np.asarray(np.asarray(smoothing) / target.shape[-1], np.float32).astype(np.float64)
    return (kept * target.astype(np.float64) + share).astype(np.float32)


def standardize(pixels: F64, mean: npt.ArrayLike, std: npt.ArrayLike) -> F64:
    """(x - mean) / std per channel, [... c]. The F_i sum to 1, so once after the sum is the same as on each image."""
    return (pixels - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
