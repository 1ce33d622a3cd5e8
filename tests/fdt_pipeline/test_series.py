from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.definition.plans import batch_weights
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform, checked_weights

SERIES = st.one_of(
    st.just(Harmonic()),
    st.just(Uniform()),
    st.floats(0, 4).map(Power),
    st.floats(0.05, 1).map(Geometric),
)


@given(SERIES, st.integers(1, 300))
def test_weights_never_rise_and_sum_to_one(series, k):
    weights = checked_weights(series, k)
    assert weights.shape == (k,)
    assert abs(weights.sum() - 1) < 1e-12
    assert (np.diff(weights) <= 1e-15).all()
    assert (weights >= 0).all()


def test_harmonic_weights_start_as_the_paper_says():
    assert [Harmonic().weights(k)[0] for k in (1, 2, 3, 4)] == pytest.approx([1, 2 / 3, 6 / 11, 12 / 25])
    assert Harmonic().weights(2) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(("classes", "smallest"), [(10, 0.03414), (100, 0.0019278), (1000, 1.3359e-4)])
def test_smallest_harmonic_weight_is_the_readings_figure(classes, smallest):
    assert Harmonic().weights(classes)[-1] == pytest.approx(smallest, rel=1e-4)


def test_power_series_spans_uniform_and_harmonic():
    assert Power(0).weights(7) == pytest.approx(Uniform().weights(7))
    assert Power(1).weights(7) == pytest.approx(Harmonic().weights(7))
    assert Geometric(1).weights(7) == pytest.approx(Uniform().weights(7))
    assert Geometric(0.5).weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize(
    ("series", "parameter"), [(Power, -1), (Power, float("nan")), (Geometric, 0), (Geometric, 1.5)]
)
def test_a_series_out_of_range_is_refused(series, parameter):
    with pytest.raises(ValueError, match=r"must be"):
        series(parameter)


@dataclass(frozen=True)
class OfAList:
    """Not hashable, which a series need not be."""

    terms: list[float]

    def weights(self, k):
        return np.array(self.terms[:k])


@pytest.mark.parametrize(
    ("weights", "match"),
    [([1.0], "shape"), ([0.5, 0.6], "sum 1"), ([0.4, 0.6], "not rise"), ([1.5, -0.5], "0 or more")],
)
def test_a_custom_series_with_wrong_weights_is_refused(weights, match):
    with pytest.raises(ValueError, match=match):
        checked_weights(OfAList(weights), 2)


def test_a_series_need_not_be_hashable():
    assert batch_weights(OfAList([1.0]), np.array([1, 1])).tolist() == [1.0, 1.0]
