"""The calibration error against its definition, bin by bin, and networks whose error is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from train.calibration import calibration_error, expected_calibration_error

samples = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(samples, st.integers(1, 20))
def test_the_error_is_the_mean_over_bins_by_their_size_of_accuracy_less_confidence(given_samples, num_bins):
    confidences, right = map(np.array, zip(*given_samples, strict=True))
    expected = 0.0
    for number in range(num_bins):
        low, high = number, number + 1
        scaled = confidences * num_bins
        inside = (scaled > low) & (scaled <= high) | ((scaled == 0) & (number == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    found = expected_calibration_error(torch.tensor(confidences), torch.tensor(right), num_bins)
    assert found == pytest.approx(expected, abs=1e-9)


def test_sure_and_always_wrong_is_the_whole_error_and_sure_and_right_is_none():
    sure = torch.ones(8)
    assert expected_calibration_error(sure, torch.zeros(8, dtype=torch.bool)) == 1
    assert expected_calibration_error(sure, torch.ones(8, dtype=torch.bool)) == 0
    half = torch.tensor([True, False] * 4)
    assert expected_calibration_error(torch.full((8,), 0.5), half) == 0


def test_errors_of_one_bin_cancel_and_of_two_bins_do_not():
    confidences, right = torch.tensor([0.6, 0.7]), torch.tensor([True, False])
    assert expected_calibration_error(confidences, right, 1) == pytest.approx(0.15)
    assert expected_calibration_error(confidences, right, 15) == pytest.approx((0.4 + 0.7) / 2)


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((2,), (3,)), ((2, 2), (2, 2))])
def test_samples_that_are_none_or_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match="expected confidences f"):
        expected_calibration_error(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.bool))


def test_a_network_is_asked_for_its_largest_probability_in_evaluation_mode():
    class Loader(list):
        device = torch.device("cpu")

    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(2, 3, bias=False)).train()
    nn.init.eye_(model[2].weight)
    images, labels = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]], [[2.0, 0.0]]]), torch.tensor([0, 1, 2])
    confidence = float(torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64).softmax(0)[0])
    found = calibration_error(model, Loader([(images[:2], labels[:2]), (images[2:], labels[2:])]))
    assert found == pytest.approx(abs(2 / 3 - confidence))
