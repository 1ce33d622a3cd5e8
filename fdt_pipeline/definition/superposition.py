"""Full Distribution Training as Algorithm 2 of the paper reads: obvious and slow. Every engine must agree with it.

    K ~ Uniform{1..C};  F_i = (1/i) / H_K;  K images of pairwise different classes
    image  = sum_i F_i augment(I_i)          target = sum_i F_i onehot(class of I_i)

Source: W. Fuhl, "Tensor Normalization and Full Distribution Training", arXiv 2109.02345, Eq. 2-4. Where the printed
algorithm is ambiguous the reading is named at the line that takes it. A plan is drawn first, in integers only; image
and target are then made from the same plan, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.philox import Stream, bounded32, bounded64, permutation, random_words
from fdt_pipeline.definition.series import Harmonic, Series, checked_weights

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FDT:
    """Options of the mixing. The defaults are the paper's.

    min_images, max_images: K is uniform on {min_images..max_images}; max_images None means the number of classes.
        Where fewer classes are at hand (a small ring), both are cut to their number.
    probability: share of the outputs that are mixed; the others are one whole image each.
    series: the weights F_i, any object with `weights(k) -> f64[k]`.
    anchor: "random", every image is drawn; "epoch", the first image walks a permutation of the data set, so that each
        image leads exactly once an epoch (in streaming: the sample at the output's own place in the stream).
    targets: "soft", the weights; "dominant", one-hot of the class with the largest weight (the paper's OV).
    """

    min_images: int = 1
    max_images: int | None = None
    probability: float = 1.0
    series: Series = field(default_factory=Harmonic)
    anchor: Literal["random", "epoch"] = "random"
    targets: Literal["soft", "dominant"] = "soft"

    def __post_init__(self) -> None:
        if self.min_images < 1:
            raise ValueError(f"FDT: min_images must be 1 or more, got {self.min_images}")
        if self.max_images is not None and self.max_images < self.min_images:
            raise ValueError(f"FDT: max_images {self.max_images} must not be below min_images {self.min_images}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"FDT: probability must be in [0, 1], got {self.probability}")
        if not isinstance(self.series, Series):
            raise ValueError(f"FDT: series must have a method weights(k) -> f64[k], got {self.series!r}")
        if self.anchor not in ("random", "epoch"):
            raise ValueError(f'FDT: anchor must be "random" or "epoch", got {self.anchor!r}')
        if self.targets not in ("soft", "dominant"):
            raise ValueError(f'FDT: targets must be "soft" or "dominant", got {self.targets!r}')

    def check_classes(self, num_classes: int) -> None:
        """ValueError unless these options fit a data set of num_classes classes."""
        if num_classes < 2:
            raise ValueError(f"FDT mixes images of different classes and needs 2 or more of them, got {num_classes}")
        for name, value in (("min_images", self.min_images), ("max_images", self.max_images)):
            if value is not None and value > num_classes:
                raise ValueError(
                    f"FDT: {name} {value} is over the number of classes, {num_classes}: each may be used once"
                )
        most = self.most_images(num_classes)
        for k in {*range(1, min(most, 256) + 1), most}:
            checked_weights(self.series, k)

    def most_images(self, num_classes: int) -> int:
        """The largest K where so many classes are at hand."""
        return min(self.max_images or num_classes, num_classes)


# Plain training is the same machine with one image an output, each leading once an epoch.
PLAIN = FDT(max_images=1, anchor="epoch")


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


@dataclass(frozen=True)
class Plan:
    """One output, decided: for each of its k constituents the image, its class, its weight, its shift and its flip."""

    images: I64  # [k] positions in the pool
    classes: I64  # [k] pairwise different
    weights: F64  # [k] F_i, sum 1
    dy: I64  # [k] first row of the crop in the padded image, 0..2*pad
    dx: I64  # [k] first column, likewise
    flip: npt.NDArray[np.bool_]  # [k]


def image_range(fdt: FDT, pool: Pool) -> tuple[int, int]:
    """(lowest, highest) K that this pool can give: the options, cut to the number of classes that have an image."""
    return min(fdt.min_images, pool.num_distinct), fdt.most_images(pool.num_distinct)


def epoch_order(seed: int, epoch: int, n: int) -> I64:
    """i64[n]: which sample leads output i of this epoch under anchor "epoch" and in plain training (resident)."""
    return permutation(seed, Stream.EPOCH_ORDER, epoch, n)


def draw_plan(
    seed: int, epoch: int, index: int, pool: Pool, fdt: FDT, augment: Augment = NO_AUGMENT, leader: int | None = None
) -> Plan:
    """The plan of output `index` of `epoch`: a function of the arguments alone (Algorithm 2, lines 1-9).

    leader is the pool position of image 1 under anchor "epoch" (see `epoch_order`), and must be None otherwise.
    Random words: block 0 gives K and whether to mix, block i gives constituent i.
    """
    if (leader is not None) != (fdt.anchor == "epoch"):
        raise ValueError(f'leader must be given with anchor "epoch" and only then, got {leader} with {fdt.anchor!r}')
    k = _draw_num_images(random_words(seed, Stream.PLAN, epoch, index, 0), pool, fdt)
    words = random_words(seed, Stream.PLAN, epoch, index, np.arange(1, k + 1))
    unused = pool.counts.copy()
    images = np.empty(k, np.int64)
    for i in range(k):
        images[i] = leader if i == 0 and leader is not None else _draw_image(words[i], unused, pool)
        unused[pool.labels[images[i]]] = 0
    shifts = 2 * augment.pad + 1
    return Plan(
        images=images,
        classes=pool.labels[images],
        weights=checked_weights(fdt.series, k),
        dy=bounded32(words[:, 2], shifts),
        dx=bounded32(words[:, 3], shifts),
        flip=(words[:, 3] & 1).astype(bool) & augment.flip,
    )


def _draw_num_images(words: npt.NDArray[np.uint32], pool: Pool, fdt: FDT) -> int:
    """K ~ Uniform{lowest..highest} (reading: "RND with maximum C" is min(C, RND)), or 1 for an output left unmixed."""
    if int(words[2]) >= round(fdt.probability * 2**32):
        return 1
    lowest, highest = image_range(fdt, pool)
    return lowest + int(bounded64(words[0], words[1], highest - lowest + 1))


def _draw_image(words: npt.NDArray[np.uint32], unused: I64, pool: Pool) -> int:
    """A uniform image among those whose class is still unused: the law of "RND(L) given C(j) not in C(GT)"."""
    rank = int(bounded64(words[0], words[1], unused.sum()))
    for label in range(pool.num_classes):
        if rank < unused[label]:
            return int(pool.by_class[pool.starts[label] + rank])
        rank -= int(unused[label])
    raise AssertionError("rank is below the number of unused images")


def augment_image(image: npt.NDArray[np.uint8], dy: int, dx: int, flip: bool, pad: int) -> npt.NDArray[np.uint8]:
    """u8[h w c] -> u8[h w c]: pad with zeros, crop at (dy, dx), then mirror left to right."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    crop = padded[dy : dy + height, dx : dx + width]
    return crop[:, ::-1] if flip else crop


def superpose_images(plan: Plan, images: npt.NDArray[np.uint8], pad: int = 0) -> F64:
    """u8[n h w c] -> f64[h w c] in [0, 255]: D = sum_i F_i augment(I_i) (Eq. 3), never rounded."""
    total = np.zeros(images.shape[1:], np.float64)
    for image, weight, dy, dx, flip in zip(plan.images, plan.weights, plan.dy, plan.dx, plan.flip, strict=True):
        total += weight * augment_image(images[image], dy, dx, flip, pad)
    return total


def superpose_targets(plan: Plan, num_classes: int, targets: str = "soft") -> npt.NDArray[np.float32]:
    """f32[num_classes], sum 1: GT = sum_i F_i onehot(class of I_i) (Eq. 4), or one-hot of F_1's class ("dominant")."""
    target = np.zeros(num_classes, np.float32)
    if targets == "dominant":
        target[plan.classes[0]] = 1
    else:
        target[plan.classes] = plan.weights
    return target


def standardize(pixels: F64, mean: npt.ArrayLike, std: npt.ArrayLike) -> F64:
    """(x - mean) / std per channel, [... c]. The F_i sum to 1, so once after the sum is the same as on each image."""
    return (pixels - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
