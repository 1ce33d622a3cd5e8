"""A weight series as the argument `series` of the operators: text that holds every number exactly."""

from __future__ import annotations

import numpy as np

from fdt_pipeline.definition.series import Series, checked_weights

# Rows of a table, as all weights for up to 2,048 images are 8 MB. Series of terms have no such bound.
MOST_OF_A_TABLE = 2048


def series_argument(series: Series, most: int) -> str:
    """What the operators take for sums of up to `most` images.

    Where `series` has `terms(k) -> f64[k]` and its weights are terms(k) / sum(terms(k)), as those of this package,
    these are passed; otherwise a table of `weights(k)` for every k up to `most`, 2,048 at the most. ValueError beyond.
    """
    terms = getattr(series, "terms", None)
    if terms is not None:
        values = np.asarray(terms(most), np.float64)
        sums = np.array([values[:k].sum() for k in range(1, most + 1)])
        return f"terms:{values.tobytes().hex()}:{sums.tobytes().hex()}"
    if most > MOST_OF_A_TABLE:
        raise ValueError(
            f"{series!r} has no terms(k), so its weights are passed as a table, for up to {MOST_OF_A_TABLE} images, "
            f"got {most}: set max_images={MOST_OF_A_TABLE}, or give it a method terms(k)"
        )
    table = np.concatenate([checked_weights(series, k) for k in range(1, most + 1)])
    return f"table:{table.astype(np.float32).tobytes().hex()}"
