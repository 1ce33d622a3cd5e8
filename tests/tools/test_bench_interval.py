"""Medians, intervals and ratios of given numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench.interval import estimate, paired_ratio, quantile


def test_six_repeats_reach_from_the_least_to_the_most_with_97_percent():
    found = estimate([5, 1, 4, 2, 3, 6])
    assert (found.median, found.low, found.high) == (3.5, 1, 6)
    assert found.confidence == 1 - 2 / 64


def test_five_repeats_say_that_they_cover_less_than_95_percent():
    assert estimate([1, 2, 3, 4, 5]).confidence == 0.9375


def test_nine_repeats_leave_out_one_at_either_end():
    found = estimate(range(1, 10))
    assert (found.low, found.high) == (2, 8)
    assert found.confidence == pytest.approx(1 - 2 * 10 / 512)


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


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_a_quantile_is_the_least_value_that_the_share_does_not_exceed(share, expected):
    assert quantile(range(1, 101), share) == expected


def test_the_quantile_of_few_values_is_one_of_them():
    assert quantile([3.0], 0.99) == 3.0
    assert quantile([1.0, 2.0], 0.99) == 2.0
