"""Epochs of loaders as values, which the laws of resume and of ranks compare."""

import numpy as np
import torch

from fdt_pipeline import FDTLoader
from tests.numbered import image_numbers

PIXELS = {"mean": 0, "std": 1}  # leaves pixels in 0..255, so that images can be told apart


def ranks(shards, global_batch, world_size, **options):
    """The loaders of all ranks, rank 0 first."""
    assert global_batch % world_size == 0
    return [
        FDTLoader(shards, global_batch // world_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def global_batches(loaders):
    """The next epoch (or what is left of it) of all ranks: each field of a batch, concatenated over the ranks."""
    parts = [list(loader) for loader in loaders]
    return [joined(batches) for batches in zip(*parts, strict=True)]


def joined(batches):
    """Batches after each other, field by field; None if there are none."""
    return tuple(torch.cat(field) for field in zip(*batches, strict=True))


def assert_same(found, expected):
    """Two lists of batches, bit for bit."""
    assert [[field.shape for field in batch] for batch in found] == [
        [field.shape for field in batch] for batch in expected
    ]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        for field, (a, b) in enumerate(zip(one, other, strict=True)):
            assert torch.equal(a, b), f"batch {number}, field {field}"


def numbers_of(batches):
    """i64[n]: which of the numbered images these batches (images, ...) show, in pixels of 0..255."""
    return np.concatenate([image_numbers(batch[0]) for batch in batches]) if batches else np.empty(0, np.int64)
