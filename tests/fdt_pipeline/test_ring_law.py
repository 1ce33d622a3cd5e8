"""How many images streaming mixes, by the law: uniform on 1..D, D the classes in the ring."""

import numpy as np
import pytest
import torch
from scipy import stats

from fdt_pipeline import FDTLoader
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource

pytestmark = pytest.mark.dali

NUM_CLASSES, PER_CLASS, BATCH = 200, 60, 50
FULL = 10 * NUM_CLASSES // BATCH  # batches until the ring of 10 samples a class is full
ALPHA = 1e-6


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """i64[epochs batches n]: how many images each output is the sum of."""
    folder, labels = tmp_path_factory.mktemp("ring") / "shards", np.arange(NUM_CLASSES * PER_CLASS) % NUM_CLASSES
    write_shards(ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), labels), folder)
    with FDTLoader(folder, BATCH, mode="streaming", ring=10 * NUM_CLASSES, augment=None) as loader:
        epochs = [torch.stack([(targets > 0).sum(1) for _, targets in loader]) for _ in range(4)]
    return torch.stack(epochs).numpy()


def test_of_200_classes_sums_are_of_100_images_once_the_ring_of_10_a_class_is_full(numbers):
    full = numbers[:, FULL:].ravel()
    assert full.mean() == pytest.approx((NUM_CLASSES + 1) / 2, abs=1)
    assert stats.chisquare(np.bincount(full, minlength=NUM_CLASSES + 1)[1:]).pvalue > ALPHA


def test_while_the_ring_fills_sums_are_of_half_of_the_classes_that_it_has(numbers):
    """A class is among n samples with odds 1 - (1 - 1/200)^n: 23 images in the first batch, 92 in the tenth."""
    samples = BATCH * np.arange(1, FULL + 1)
    expected = (NUM_CLASSES * (1 - (1 - 1 / NUM_CLASSES) ** samples) + 1) / 2
    found = numbers[:, :FULL].mean((0, 2))
    deviation = expected / np.sqrt(3 * numbers.shape[0] * BATCH)  # of the mean of uniform numbers
    assert (abs(found - expected) < 5 * deviation).all()
    assert expected[[0, 9]].round().tolist() == [23, 92]
