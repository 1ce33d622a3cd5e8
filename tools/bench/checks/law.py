"""Mixed images: no output twice, as many images in a sum as the method says, every class as often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..errors import RefusedError
from ..task import Mixing
from .epoch import F32, Epoch

DISTINCT = 0.9  # a sum of one image may come again
ALPHA = 1e-9  # odds that an honest contender is refused by a test
BINS = 10
ENOUGH = 64  # outputs of a batch that show all classes it was drawn from
SIGMAS = 7.0
PAIRS = 0.25  # of MixUp's outputs mix two classes, at least


def check_law(epochs: list[Epoch], mixing: Mixing, samples_per_class: Sequence[int]) -> None:
    """RefusedError unless outputs differ and their classes are drawn as the method says."""
    keys = [key for epoch in epochs for key in epoch.keys]
    if len(set(keys)) < DISTINCT * len(keys):
        raise RefusedError(f"only {len(set(keys))} of {len(keys)} outputs differ")
    batches = [targets for epoch in epochs for targets in epoch.targets]
    frequencies = np.array(samples_per_class) / sum(samples_per_class)
    even = np.full_like(frequencies, 1 / len(frequencies))
    if mixing != "fdt in the batch" or np.allclose(
        frequencies, even
    ):  # else it depends on what a batch happens to hold
        _check_mass(np.concatenate(batches), frequencies if mixing == "mixup" else even)
    if mixing == "mixup":
        _check_pairs(np.concatenate(batches))
    else:
        _check_counts(batches, whole_set=mixing == "fdt")


def _check_mass(targets: F32, shares: npt.NDArray[np.float64]) -> None:
    """shares: the mean of each class's weight; its variance is less than that, as no weight exceeds 1."""
    expected = len(targets) * shares
    mass = targets.sum(0, dtype=np.float64)
    off = np.abs(mass - expected) / (SIGMAS * np.sqrt(expected) + 1)
    worst = int(off.argmax())
    if off[worst] > 1:
        raise RefusedError(
            f"class {worst} has a weight of {mass[worst]:.4g} in {len(targets)} outputs, expected {expected[worst]:.4g}"
        )


def _check_pairs(targets: F32) -> None:
    counts = (targets > 0).sum(1)
    if counts.max() > 2:
        raise RefusedError(f"MixUp mixes two images, got a target with {counts.max()} classes")
    if targets.shape[1] > 1 and (counts == 2).mean() < PAIRS:
        raise RefusedError(f"only {(counts == 2).mean():.1%} of the outputs mix two classes")


def _check_counts(batches: list[F32], whole_set: bool) -> None:
    """K, the number of classes in a sum, is uniform on 1..D. D is the number of classes that could be drawn: of the
    set, or of those images that the outputs of a batch were made from; which is seen in the batch itself."""
    rng = np.random.default_rng(0)
    places = [_places(targets, whole_set, rng) for targets in batches if whole_set or len(targets) >= ENOUGH]
    values = np.concatenate(places) if places else np.empty(0)
    if len(values) < 5 * BINS:
        return
    counts = np.histogram(values, BINS, (0, 1))[0]
    if stats.chisquare(counts).pvalue < ALPHA:
        raise RefusedError(
            f"the number of classes in a sum must be uniform on 1..D, got {counts.tolist()} in {BINS} equal parts of it"
        )


def _places(targets: F32, whole_set: bool, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Where K lies in (0, D], spread evenly within its step: uniform on [0, 1) if K is on 1..D."""
    present = targets > 0
    most = targets.shape[1] if whole_set else int(present.any(0).sum())
    return (present.sum(1) - rng.random(len(targets))) / most
