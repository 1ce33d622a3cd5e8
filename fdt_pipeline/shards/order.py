"""The order in which samples are written: shuffled, with the classes evenly interleaved.

The reader shuffles only the buffer that it holds, so the mix of classes must already be right in every stretch of
the stream: sample j of the n_c of its class stands at (j + u) / n_c of the way, u uniform on [0, 1). A stretch of
1/n_c of the stream then holds one sample of class c, give or take one.
"""

from __future__ import annotations

import numpy as np

from fdt_pipeline.definition.philox import Stream, permutation, random_words

from ..sources.source import I64

_SHUFFLE, _JITTER = 0, 1


def interleaved_order(labels: I64, num_classes: int, seed: int) -> I64:
    """labels i64[n] -> i64[n], the source positions in the order to write them: a function of labels and seed."""
    shuffled = permutation(seed, Stream.SHARDING, _SHUFFLE, len(labels))
    jitter = random_words(seed, Stream.SHARDING, _JITTER, np.arange(len(labels)), 0)[:, 0] / 2.0**32
    place = np.empty(len(labels))
    for label in range(num_classes):
        of_class = shuffled[labels[shuffled] == label]
        # j + u is exact in float64 and division is rounded as IEEE 754 says: the same order on every machine.
        place[of_class] = (np.arange(len(of_class)) + jitter[of_class]) / max(len(of_class), 1)
    return np.argsort(place, kind="stable")
