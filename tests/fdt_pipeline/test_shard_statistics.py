"""Mean and standard deviation of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fdt_pipeline.shards.statistics import PixelStatistics

IMAGES = st.lists(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))), min_size=1, max_size=5)


def gathered(images: list[np.ndarray]) -> PixelStatistics:
    statistics = PixelStatistics()
    for image in images:
        statistics.add(image)
    return statistics


@given(IMAGES)
def test_they_are_those_of_all_pixels_even_of_images_of_different_sizes(images: list[np.ndarray]) -> None:
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    np.testing.assert_allclose(gathered(images).mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(gathered(images).std, pixels.std(0), rtol=1e-9, atol=1e-9)


@given(IMAGES)
def test_the_order_of_the_images_does_not_change_a_bit(images: list[np.ndarray]) -> None:
    forward, backward = gathered(images), gathered(images[::-1])
    assert (forward.mean, forward.std) == (backward.mean, backward.std)


def test_white_images_have_mean_255_and_std_0_exactly() -> None:
    statistics = gathered([np.full((300, 300, 1), 255, np.uint8)] * 3)
    assert (statistics.mean, statistics.std) == ((255.0,), (0.0,))


def test_a_change_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 channels as in the images before, got 1"):
        gathered([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 1), np.uint8)])


@given(IMAGES)
def test_counts_of_values_add_up_to_what_the_images_do(images: list[np.ndarray]) -> None:
    counted = PixelStatistics()
    for image in images:
        counted.add_counts(np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]))
    assert (counted.mean, counted.std) == (gathered(images).mean, gathered(images).std)
