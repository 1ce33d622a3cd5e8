"""Deviation and difference of a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

CONFIDENCE = 0.95


def deviation(values: Sequence[float]) -> float | None:
    """ddof 1, so None of one value."""
    return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """mean(a) - mean(b); standard error and interval are None unless both have two seeds or more."""

    value: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch's: the deviations may differ, and the seeds are not paired. The interval is of 95 %."""
    value = fmean(a) - fmean(b)
    if len(a) < 2 or len(b) < 2:
        return Difference(value)
    variance_a, variance_b = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
    error = math.sqrt(variance_a + variance_b)
    if error == 0:
        return Difference(value, 0.0, value, value)
    share = variance_a / (variance_a + variance_b)
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Difference(value, error, value - half, value + half)
