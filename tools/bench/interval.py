"""A median of few repeats with an interval that assumes nothing but that the repeats are alike and independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95
FEWEST = 6  # repeats of which an interval with CONFIDENCE can be had: 1 - 2 / 2**5 is 0.9375


@dataclass(frozen=True)
class Estimate:
    """low and high: order statistics of the repeats, between which the true median lies with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float

    @property
    def spread(self) -> float:
        """How far the interval reaches from the median, as a share of it: 0.25 is +-25 %."""
        return max(self.high - self.median, self.median - self.low) / self.median

    def covers(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, float]:
        return {key: rounded(value) for key, value in vars(self).items()}


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def estimate(values: Sequence[float]) -> Estimate:
    """The narrowest pair of order statistics that covers the median with CONFIDENCE; of fewer than FEWEST repeats the
    least and the most, with the confidence that those have. Positive values; ValueError where there are none."""
    if not values:
        raise ValueError("a median needs at least one value, got none")
    ordered, n = sorted(values), len(values)
    cut = max([k for k in range(1, (n + 1) // 2 + 1) if _confidence(n, k) >= CONFIDENCE], default=1)
    return Estimate(median(ordered), ordered[cut - 1], ordered[n - cut], _confidence(n, cut))


def _confidence(n: int, k: int) -> float:
    """That the median lies between the k-th least and the k-th most of n values: neither tail has fewer than k of
    n fair coins."""
    return 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """Of what was measured in the same round: a clock that changes from round to round cancels."""
    return estimate([a / b for a, b in zip(over, under, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
