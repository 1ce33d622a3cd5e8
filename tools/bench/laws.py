"""The law of each mixing, which a contender that mixes is held to: as many classes, and of such weights, as it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from fdt_pipeline.definition.mixing import CutMix, MixUp
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.definition.superposition import Pool

from .task import MIXING, Mixing, require

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# How far an honest contender may be from each law:
DISTINCT = 0.9  # share of mixed outputs that must differ: a sum of one image may come again
SIGMAS = 7.0  # of the weight that a class has in all targets
PAIRS = 0.25  # of the outputs of MixUp and CutMix mix two classes, at least
ALPHA = 1e-9  # odds that an honest contender is refused by a test of K or of weights
BINS = 10
ENOUGH = 64  # outputs of a batch that show all classes it was drawn from
ONE_DRAW = 1e-4  # weights of a batch that differ by less are one, with float32's roundings
PLANS = 20_000  # of the definition, to compare weights with

PAIRING: dict[Mixing, MixUp | CutMix] = {
    "mixup": MixUp(1.0, unique_classes=True),
    "cutmix": CutMix(1.0, unique_classes=True),
}


def check_law(
    keys: list[Any],
    batches: list[F32],
    mixing: Mixing,
    samples_per_class: Sequence[int],
    size: tuple[int, int],
    max_images: int | None = None,
) -> None:
    """RefusedError unless outputs differ and their classes are drawn as the method says.

    batches: their targets. size: (height, width) of the images, on which the areas of CutMix's boxes depend.
    """
    require(len(set(keys)) >= DISTINCT * len(keys), f"only {len(set(keys))} of {len(keys)} outputs differ")
    frequencies = np.array(samples_per_class) / sum(samples_per_class)
    even = np.full_like(frequencies, 1 / len(frequencies))
    # In a batch or a ring of an uneven set the weights depend on what it happens to hold.
    if mixing not in ("fdt in the batch", "fdt in a ring") or np.allclose(frequencies, even):
        _check_mass(np.concatenate(batches), frequencies if mixing in PAIRING else even)
    if mixing in PAIRING:
        _check_pairs(np.concatenate(batches), MIXING[mixing])
        _check_weights(batches, mixing, size)
    else:
        _check_counts(batches, whole_set=mixing == "fdt", max_images=max_images)


def _check_mass(targets: F32, shares: F64) -> None:
    """shares: the mean of each class's weight; its variance is less than that, as no weight exceeds 1."""
    expected = len(targets) * shares
    mass = targets.sum(0, dtype=np.float64)
    off = np.abs(mass - expected) / (SIGMAS * np.sqrt(expected) + 1)
    worst = int(off.argmax())
    got = f"a weight of {mass[worst]:.4g} in {len(targets)} outputs"
    require(off[worst] <= 1, f"class {worst} has {got}, expected {expected[worst]:.4g}")


def _check_pairs(targets: F32, name: str) -> None:
    counts = (targets > 0).sum(1)
    require(counts.max() <= 2, f"{name} mixes two images, got a target with {counts.max()} classes")
    share = (counts == 2).mean()
    require(targets.shape[1] == 1 or share >= PAIRS, f"only {share:.1%} of the outputs mix two classes")


def _check_weights(batches: list[F32], mixing: Mixing, size: tuple[int, int]) -> None:
    """The larger weight of two classes has the law of alpha = 1, by Kolmogorov and Smirnov's test.

    That of a batch that has but one is one draw: torchvision and timm draw lambda, and the box, once a batch.
    """
    drawn = [np.empty(0, np.float32)]
    for targets in batches:
        larger = targets.max(1)[(targets > 0).sum(1) == 2]
        drawn.append(larger[:1] if len(larger) and np.ptp(larger) < ONE_DRAW else larger)
    found, mix = np.concatenate(drawn), PAIRING[mixing]
    if not len(found):  # a set of one class
        return
    plans = draw_plans(0, 0, np.arange(PLANS), Pool([0, 1], 2), mix, leaders=np.zeros(PLANS, np.int64), size=size)
    expected = plans.weights.reshape(-1, 2).max(1)
    expected = expected[expected < 1]
    is_lawful = stats.ks_2samp(found, expected, method="asymp").pvalue >= ALPHA
    parts = f"expected a mean of {expected.mean():.3f}, got {found.mean():.3f}"
    require(is_lawful, f"the larger of two weights must have the law of {mix!r}, {parts}")


def _check_counts(batches: list[F32], whole_set: bool, max_images: int | None) -> None:
    """K, the number of classes in a sum, is uniform on 1..D, or on 1..max_images if that is less.

    D is the number of classes that could be drawn: those of the set, or of the images that the outputs of a batch were
    made from, its own or those in a ring, of which there are fewer when an epoch begins. That is seen in the batch
    itself. K lies in (0, D], spread evenly within its step.
    """
    rng, places = np.random.default_rng(0), [np.empty(0)]
    for targets in batches:
        if whole_set or len(targets) >= ENOUGH:
            present = targets > 0
            num_classes = targets.shape[1] if whole_set else int(present.any(0).sum())
            most = min(num_classes, max_images or num_classes)
            places.append((present.sum(1) - rng.random(len(targets))) / most)
    counts = np.histogram(np.concatenate(places), BINS, (0, 1))[0]
    is_uniform = counts.sum() < 5 * BINS or stats.chisquare(counts).pvalue >= ALPHA
    parts = f"got {counts.tolist()} in {BINS} equal parts of it"
    require(is_uniform, f"the number of classes in a sum must be uniform on 1..D, {parts}")
