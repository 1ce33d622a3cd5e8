"""The order of samples in the shards."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.plan import interleaved_order

SEEDS = st.integers(0, 2**64 - 1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), SEEDS)
def test_every_sample_is_written_once(labels, seed):
    assert sorted(interleaved_order(np.array(labels), 5, seed)) == list(range(len(labels)))


@given(st.integers(1, 8), st.integers(1, 12), SEEDS)
def test_any_2c_minus_1_samples_of_a_balanced_set_hold_all_c(num_classes, per_class, seed):
    labels = np.repeat(np.arange(num_classes), per_class)
    stream = labels[interleaved_order(labels, num_classes, seed)]
    window = 2 * num_classes - 1
    for start in range(max(len(stream) - window, 0) + 1):
        assert set(stream[start : start + window]) == set(range(num_classes))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), SEEDS)
def test_classes_keep_their_proportions_along_the_stream(counts, seed):
    """After the first m samples each class is within C of its share of m, C the number of classes."""
    labels = np.repeat(np.arange(len(counts)), counts)
    stream = labels[interleaved_order(labels, len(counts), seed)]
    seen = np.cumsum(stream[:, None] == np.arange(len(counts)), axis=0)
    share = np.arange(1, len(labels) + 1)[:, None] * np.array(counts) / len(labels)
    assert np.abs(seen - share).max() <= len(counts)


def test_each_class_is_shuffled_uniformly():
    """Which of 4 samples of a class comes first is uniform: 2000 seeds, 3 degrees of freedom, p = 0.001."""
    labels = np.repeat([0, 1], [4, 3])
    orders = [interleaved_order(labels, 2, seed) for seed in range(2000)]
    first = np.bincount([order[order < 4][0] for order in orders], minlength=4)
    assert ((first - 500) ** 2 / 500).sum() < 16.27


def test_the_order_never_changes_between_versions():
    """Golden: shards made by two versions of the project from the same source are the same files."""
    assert interleaved_order(np.arange(12) % 3, 3, 2021).tolist() == [10, 0, 5, 3, 8, 7, 9, 11, 4, 1, 6, 2]
