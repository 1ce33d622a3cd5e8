"""The part of an image that is shown: a random one in training, the middle in evaluation, as ImageNet is trained on.

A random crop is a function of (seed, epoch, position of the sample in the set, size of the image) alone, so that ranks,
batches, threads, devices and a resume all get the same one. Its law is that of torchvision's RandomResizedCrop.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.philox import Stream, bounded32, random_words
from fdt_pipeline.definition.superposition import NO_AUGMENT, Augment

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Size = int | tuple[int, int]

_TRIES = 10


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of each image, resized to `size`, then flipped left to right with odds 1/2 (training).

    size: (height, width), or one number for both. scale: the share of the image's area, drawn uniformly. ratio: the
    width by the height, drawn uniformly in its logarithm. What does not fit into the image is drawn again; after 10
    times it is the middle of the image, as much as the ratio allows.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_pair("RandomResizedCrop: size", self.size))
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            object.__setattr__(self, name, _checked_range(f"RandomResizedCrop: {name}", getattr(self, name), most))
        if not isinstance(self.flip, bool):
            raise ValueError(f"RandomResizedCrop: flip must be True or False, got {self.flip!r}")

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of what it makes."""
        return _pair(self.size)

    @property
    def augment(self) -> Augment:
        """What is left to do for each constituent of a sum."""
        return Augment(pad=0, flip=self.flip)


@dataclass(frozen=True)
class ResizeCrop:
    """The shorter side is resized to `resize` pixels, and the middle of `crop` pixels is taken (evaluation).

    crop: (height, width), or one number for both, of at most `resize` pixels, so that every image is large enough.
    """

    resize: int = 256
    crop: Size = 224

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", _checked_side("ResizeCrop: resize", self.resize))
        object.__setattr__(self, "crop", _checked_pair("ResizeCrop: crop", self.crop))
        if max(self.output_size) > self.resize:
            raise ValueError(
                f"ResizeCrop: crop must be at most resize, the shorter side that it is cut from: got "
                f"crop={self.crop} and resize={self.resize}"
            )

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of what it makes."""
        return _pair(self.crop)

    @property
    def augment(self) -> Augment:
        """Nothing is left to do."""
        return NO_AUGMENT


def draw_crops(
    crop: RandomResizedCrop,
    seed: int,
    epoch: int,
    samples: npt.ArrayLike,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
) -> I32:
    """Positions in the set i64[n], sizes of the images i64[n] -> i32[n 4]: top, left, height, width of their crops.

    Random words: block t is try t (0..9) of a sample; word 0 is the area, word 1 the ratio, words 2 and 3 are top and
    left. Exponential and root are float64; where another machine's differ in the last bit, a side may round the other
    way, once in some 10^13 crops.
    """
    samples, heights, widths = (np.asarray(values, np.int64)[:, None] for values in (samples, heights, widths))
    words = random_words(seed, Stream.CROP, epoch, samples, np.arange(_TRIES))
    tried, fits = _tried(crop, words, heights, widths)
    # All tries at once, and the first that fits: one after the other took twice the time for 64 samples.
    first = tried[np.arange(len(samples)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1)[:, None], first, _middles(crop.ratio, heights, widths)[:, 0]).astype(np.int32)


def _tried(
    crop: RandomResizedCrop, words: npt.NDArray[np.uint32], heights: I64, widths: I64
) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Words u32[n 10 4], sizes i64[n 1] -> (crops i64[n 10 4], whether they fit [n 10])."""
    unit = words[..., :2] / 2.0**32
    area = heights * widths * _between(crop.scale, unit[..., 0])
    ratio = np.exp(_between((math.log(crop.ratio[0]), math.log(crop.ratio[1])), unit[..., 1]))
    width, height = (np.rint(np.sqrt(squared)).astype(np.int64) for squared in (area * ratio, area / ratio))
    fits = (height > 0) & (height <= heights) & (width > 0) & (width <= widths)
    top = bounded32(words[..., 2], np.where(fits, heights - height + 1, 1))
    left = bounded32(words[..., 3], np.where(fits, widths - width + 1, 1))
    return np.stack([top, left, height, width], axis=-1), fits


def _between(limits: tuple[float, float], unit: F64) -> F64:
    return limits[0] + (limits[1] - limits[0]) * unit


def _middles(ratio: tuple[float, float], heights: I64, widths: I64) -> I64:
    """Sizes i64[...] -> i64[... 4]: the largest part in the middle of each image whose ratio is allowed."""
    height = np.clip(np.rint(widths / ratio[0]).astype(np.int64), 1, heights)
    width = np.clip(np.rint(heights * ratio[1]).astype(np.int64), 1, widths)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=-1)


def middle_regions(crop: ResizeCrop, heights: npt.ArrayLike, widths: npt.ArrayLike) -> F64:
    """Sizes of images i64[n] -> f64[n 4]: top, left, height, width, in pixels of the image, of what the crop shows.

    Sides and places are rounded as torchvision's Resize and CenterCrop round them: the longer side down, the place to
    the nearest, halves to the even one.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    sides = np.stack([heights, widths], axis=1)
    shorter = sides.min(axis=1, keepdims=True)
    resized = np.where(sides == shorter, crop.resize, (crop.resize * sides / shorter).astype(np.int64))
    cut = np.array(crop.output_size)
    scale = sides / resized
    return np.concatenate([np.rint((resized - cut) / 2) * scale, cut * scale], axis=1)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _checked_pair(name: str, size: object) -> tuple[int, int]:
    if hasattr(size, "__index__"):
        side = _checked_side(name, size)
        return side, side
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"{name} must be a whole number or (height, width), got {size!r}")
    return _checked_side(f"height of {name}", size[0]), _checked_side(f"width of {name}", size[1])


def _checked_side(name: str, side: object) -> int:
    if not hasattr(side, "__index__") or operator.index(side) < 1:
        raise ValueError(f"{name} must be 1 pixel or more, a whole number, got {side!r}")
    return operator.index(side)


def _checked_range(name: str, limits: object, most: float) -> tuple[float, float]:
    if not isinstance(limits, tuple | list) or len(limits) != 2:
        raise ValueError(f"{name} must be (least, most), got {limits!r}")
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers, got {limits!r}") from None
    if not 0 < low <= high <= most or math.isinf(high):
        wanted = "0 < least <= most" + (f" <= {most:g}" if most < math.inf else "")
        raise ValueError(f"{name} must be (least, most) with {wanted}, got {limits!r}")
    return low, high
