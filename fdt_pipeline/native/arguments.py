"""A weight series as the argument `series` of the operators: text that holds every number exactly."""

from __future__ import annotations

import numpy as np

from fdt_pipeline.definition.series import Series, checked_weights

# A table of the weights of up to 2,048 images is 8 MB. Series with terms have no such bound.
MAX_TABLE_IMAGES = 2048


def series_argument(series: Series, most: int) -> str:
    """What the operators take for sums of up to `most` images.

    Where `series` has `terms(k) -> f64[k]` and its weights are terms(k) / sum(terms(k)), like the series of this
    package, the terms are passed; otherwise a table of `weights(k)` for every k up to `most`, which may be 2,048.
    ValueError beyond that.
    """
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
