"""Medians, intervals and ratios of given numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench.results import estimate, paired_ratio


@pytest.mark.parametrize(
    ("n", "left_out", "confidence"), [(5, 0, 0.9375), (6, 0, 1 - 2 / 64), (9, 1, 1 - 2 * 10 / 512)]
)
def test_the_interval_leaves_out_as_many_at_either_end_as_its_confidence_allows(n, left_out, confidence):
    """Five repeats cover less than the 95 percent that are wanted, and say so."""
    found = estimate(np.random.default_rng(0).permutation(np.arange(1, n + 1)).tolist())
    assert (found.median, found.low, found.high) == ((n + 1) / 2, 1 + left_out, n - left_out)
    assert found.confidence == pytest.approx(confidence)


@pytest.mark.parametrize("n", [6, 9, 15])
def test_the_interval_covers_the_true_median_as_often_as_it_says(n):
    rng = np.random.default_rng(0)
    found = [estimate(np.exp(rng.normal(size=n)).tolist()) for _ in range(4000)]
    share = np.mean([one.covers(1.0) for one in found])
    assert found[0].confidence >= 0.95
    assert share == pytest.approx(found[0].confidence, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=12))
def test_the_median_lies_within_the_interval(values):
    found = estimate(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_a_median_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_the_spread_is_the_longer_arm_as_a_share_of_the_median():
    assert estimate([9, 10, 14]).spread == pytest.approx(0.4)


def test_ratios_within_rounds_do_not_see_a_clock_that_changes_between_them():
    clock = [1.0, 0.5, 2.0, 0.7, 1.3, 0.9]
    found = paired_ratio([90 * c for c in clock], [100 * c for c in clock])
    assert (found.low, found.high) == (pytest.approx(0.9), pytest.approx(0.9))
