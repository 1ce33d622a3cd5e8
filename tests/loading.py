"""Epochs of loaders as values, which the laws of resume and of ranks compare; and shards that spoil."""

import os
from dataclasses import replace

import numpy as np
import torch

from fdt_pipeline import FDT, FDTLoader, Geometric, OneOf
from tests.folders import parse_index
from tests.numbered import image_numbers

MODES = ("resident", "streaming")
PIXELS = {"mean": 0, "std": 1}  # leaves pixels in 0..255, so that images can be told apart
# Sums of two that look like their first image, so that its number can be read off them.
LEADER_FIRST = FDT(min_images=2, series=Geometric(1e-4), anchor="epoch")


def of_partners(mix, partners):
    """The same mix with these partners."""
    if isinstance(mix, OneOf):
        return OneOf([(choice and of_partners(choice, partners), share) for choice, share in mix.choices])
    return mix and replace(mix, partners=partners)


def ranks(shards, global_batch, world_size, **options):
    """The loaders of all ranks, rank 0 first."""
    assert global_batch % world_size == 0
    return [
        FDTLoader(shards, global_batch // world_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def global_batches(loaders):
    """The next epoch (or what is left of it) of all ranks: each field of a batch, concatenated over the ranks."""
    return [joined(batches) for batches in zip(*map(list, loaders), strict=True)]


def joined(batches):
    """Batches, or the next epoch of a loader, after each other: each field concatenated."""
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


def members_of(shards, number):
    """(tar, image, label): where the sample with this number as its key is."""
    for index in shards.glob("*.idx"):
        for image, label in parse_index(index.read_text()):
            if int(image.name.partition(".")[0]) == number:
                return index.with_suffix(".tar"), image, label
    raise AssertionError(number)


def overwrite(tar, offset, length, keep_time=True):
    """Invert these bytes in place; keep_time: as a disk does that spoils, without a new time of the file."""
    state = tar.stat()
    with tar.open("r+b") as file:
        file.seek(offset)
        there = file.read(length)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in there))
    if keep_time:
        os.utime(tar, ns=(state.st_atime_ns, state.st_mtime_ns))
