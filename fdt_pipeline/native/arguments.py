"""A mixing as the argument `mix` of the operators: text that holds every number exactly."""

from __future__ import annotations

import numpy as np

from fdt_pipeline.definition.mixing import FDT, MOST_IMAGES, Branch, CutMix, Mix, beta_quantiles, branches
from fdt_pipeline.definition.series import Series, checked_weights

# A table of the weights of up to 2,048 images is 8 MB. Series with terms have no such bound.
MAX_TABLE_IMAGES = 2048
MOST_CLASSES = MOST_IMAGES  # kMostClasses of plan.h bounds both


def mix_argument(mix: Mix, num_classes: int) -> str:
    """What the operators take for images of up to so many classes.

    `fn.fdt.superpose(..., mix=FDT())` calls it by itself; it is for DALI's other ways to make an operator. A series of
    FDT that has `terms(k) -> f64[k]`, and weights(k) = terms(k) / sum(terms(k)), like those of this package, is passed
    as its terms; any other as a table, for up to 2,048 images. ValueError beyond that.
    """
    return ";".join(_branch(branch, num_classes) for branch in branches(mix))


def _branch(branch: Branch, num_classes: int) -> str:
    """As read_mix of csrc/plan.cc reads it."""
    mixing = branch.mixing
    if isinstance(mixing, FDT):
        kind, lowest, highest = "sum", mixing.min_images, mixing.max_images or 0
        if max(lowest, highest) > MOST_IMAGES:
            raise ValueError(f"the native operators sum up to {MOST_IMAGES:,} images, got {mixing!r}")
        weights = series_argument(mixing.series, mixing.most_images(num_classes))
    else:
        kind, lowest, highest = "cutmix" if isinstance(mixing, CutMix) else "mixup", 2, 2
        weights = beta_quantiles(mixing.alpha).astype("<u4").tobytes().hex()
    flags = f"{int(mixing.anchor == 'epoch')} {int(mixing.unique_classes)} {float(mixing.label_smoothing)!r}"
    return f"{kind} {branch.mixed_end} {branch.end} {flags} {lowest} {highest} {weights}"


def series_argument(series: Series, most: int) -> str:
    """The weights of sums of up to `most` images: "terms:" or "table:" with hexadecimal numbers."""
    terms = getattr(series, "terms", None)
    if terms is not None:
        values = np.asarray(terms(most), np.float64)
        sums = np.array([values[:k].sum() for k in range(1, most + 1)])
        return f"terms:{values.tobytes().hex()}:{sums.tobytes().hex()}"
    if most > MAX_TABLE_IMAGES:
        raise ValueError(
            f"{series!r} has no terms(k), so its weights are passed as a table, for up to {MAX_TABLE_IMAGES} images, "
            f"got {most}: set max_images={MAX_TABLE_IMAGES}, or give it a method terms(k)"
        )
    table = np.concatenate([checked_weights(series, k) for k in range(1, most + 1)])
    return f"table:{table.astype(np.float32).tobytes().hex()}"
