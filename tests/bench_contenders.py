"""Contenders for the tests of `python -m tools bench`: honest ones, and cheats; made of NumPy and a set in memory."""

import os
import subprocess
import time

import numpy as np
import torch

from fdt_pipeline.shards import load_shards
from tools.bench.task import NotInstalledError


class InMemory:
    """order(rng, n): which images an epoch has. finish(images u8[n h w c], labels, draw) -> what a batch is made of."""

    def __init__(self, task, order=None, batch=None):
        self.task = task
        self.images, self.labels, _ = load_shards(task.shards)
        self.order = order or (lambda rng, n: rng.permutation(n))
        self.batch = batch or whole_batch
        self.rng = np.random.default_rng(task.seed)

    def __iter__(self):
        order = self.order(self.rng, len(self.labels))
        for first in range(0, len(order), self.task.batch_size):
            yield self.batch(self, order[first : first + self.task.batch_size])


def standardized(task, pixels):
    """[n h w c] in 0..255 -> f32[n c h w]."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (task.mean, task.std))
    return ((planes - mean) / std).contiguous()


def whole_batch(loader, rows):
    return standardized(loader.task, loader.augmented(rows)), torch.from_numpy(loader.labels[rows])


def _augmented(loader, rows):
    """Shifted by a roll, enough to make batches differ."""
    images = loader.images[rows]
    return np.roll(images, int(loader.rng.integers(8)), axis=2) if loader.task.pad else images


InMemory.augmented = _augmented


def mixed_batch(loader, rows, draw_k=None):
    """FDT from the whole set."""
    num_classes = loader.task.num_classes
    pixels, targets = [], np.zeros((len(rows), num_classes), np.float32)
    for target in targets:
        k = (draw_k or loader.rng.integers)(1, num_classes + 1)
        weights = 1 / np.arange(1, k + 1)
        weights /= weights.sum()
        classes = loader.rng.permutation(num_classes)[:k]
        chosen = [loader.rng.choice(np.flatnonzero(loader.labels == c)) for c in classes]
        pixels.append(np.tensordot(weights, loader.images[chosen], 1))
        target[classes] = weights
    return standardized(loader.task, np.stack(pixels)), torch.from_numpy(targets)


def mixup_batch(loader, rows):
    """Pairs of a batch."""
    images, labels = whole_batch(loader, rows)
    weight = float(loader.rng.uniform(0.1, 0.9))
    one_hot = torch.nn.functional.one_hot(labels, loader.task.num_classes).float()
    return weight * images + (1 - weight) * images.roll(1, 0), weight * one_hot + (1 - weight) * one_hot.roll(1, 0)


def whole(task):
    return InMemory(task)


def generated(task):
    """A generator function, which is called for each epoch."""
    seeds = int.from_bytes(os.urandom(4), "little")
    loader = InMemory(task)
    loader.rng = np.random.default_rng(seeds)
    yield from loader


def mixed(task):
    return InMemory(task, batch=mixed_batch)


def mixup(task):
    return InMemory(task, batch=mixup_batch)


def one_hot(task):
    return InMemory(task, batch=_one_hot_batch)


def _one_hot_batch(loader, rows):
    images, labels = whole_batch(loader, rows)
    return images, torch.nn.functional.one_hot(labels, loader.task.num_classes).float()


# Cheats


def same_batch(task):
    """The first batch of the set, as often as there are batches."""
    return InMemory(task, order=lambda rng, n: np.arange(n) % task.batch_size)


def half_of_the_epoch(task):
    return InMemory(task, order=lambda rng, n: rng.permutation(n)[: n // 2])


def with_replacement(task):
    return InMemory(task, order=lambda rng, n: rng.integers(0, n, n))


def never_ends(task):
    return InMemory(task, order=lambda rng, n: np.tile(rng.permutation(n), 3))


def not_shuffled(task):
    return InMemory(task, order=lambda rng, n: np.arange(n))


def shuffled_labels(task):
    def batch(loader, rows):
        images, labels = whole_batch(loader, rows)
        return images, labels.roll(1)

    return InMemory(task, batch=batch)


def eight_bits(task):
    def batch(loader, rows):
        return torch.from_numpy(loader.images[rows]), torch.from_numpy(loader.labels[rows])

    return InMemory(task, batch=batch)


def brighter(task):
    """By half a grey level: normalized with another mean."""

    def batch(loader, rows):
        images, labels = whole_batch(loader, rows)
        return images + 0.002, labels

    return InMemory(task, batch=batch)


def sums_of_a_half(task):
    def batch(loader, rows):
        images, targets = mixed_batch(loader, rows)
        return images, targets / 2

    return InMemory(task, batch=batch)


def always_two(task):
    """FDT that is MixUp."""
    return InMemory(task, batch=lambda loader, rows: mixed_batch(loader, rows, draw_k=lambda low, high: 2))


def first_classes(task):
    """Never draws the last class, though half of the weight of each target is its own."""

    def batch(loader, rows):
        images, targets = mixed_batch(loader, rows)
        targets[:, 0] += targets[:, -1]
        targets[:, -1] = 0
        return images, targets

    return InMemory(task, batch=batch)


def targets_of_others(task):
    def batch(loader, rows):
        images, targets = mixed_batch(loader, rows)
        return images, targets.roll(1, 0)

    return InMemory(task, batch=batch)


def repeated_sums(task):
    """Mixes one batch and gives it again and again."""
    loader = InMemory(task)
    made = mixed_batch(loader, np.arange(task.batch_size))

    def batch(loader, rows):
        return made[0][: len(rows)], made[1][: len(rows)]

    loader.batch = batch
    return loader


def not_installed(task):
    raise NotInstalledError("pip install nothing-like-it")


def dies(task):
    os._exit(7)


def hangs(task):
    """After three batches."""
    loader = InMemory(task)
    loader.given = 0

    def batch(loader, rows):
        loader.given += 1
        if loader.given > 3:
            _hang(task)
        return whole_batch(loader, rows)

    loader.batch = batch
    return loader


def hangs_closing(task):
    loader = InMemory(task)
    loader.close = lambda: _hang(task)
    return loader


def _hang(task):
    """With a process of its own, whose number is in the work folder."""
    child = subprocess.Popen(["sleep", "600"])
    (task.work / "child").write_text(str(child.pid))
    child.wait()


def takes_its_time(task):
    def batch(loader, rows):
        time.sleep(0.4)
        return whole_batch(loader, rows)

    return InMemory(task, batch=batch)


def raises(task):
    raise RuntimeError("out of luck")


for function in (mixed, sums_of_a_half, always_two, first_classes, targets_of_others, repeated_sums):
    function.mixing = "fdt"
    function.images_per_output = 3.5
mixup.mixing = "mixup"
