"""Contenders for the tests of `python -m tools bench`: honest ones, and cheats; made of NumPy and a set in memory."""

import os
import subprocess
import time

import numpy as np
import torch

from fdt_pipeline.shards import load_shards
from tools.bench.task import NotInstalledError


class InMemory:
    """order(rng, n): the positions of an epoch. batch(loader, rows): (images, targets) of some of them."""

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

    def augmented(self, rows):
        """Shifted by a roll, enough to make batches differ."""
        images = self.images[rows]
        return np.roll(images, int(self.rng.integers(8)), axis=2) if self.task.pad else images

    def one_hot(self, labels):
        return torch.nn.functional.one_hot(labels, self.task.num_classes).float()


def standardized(task, pixels):
    """[n h w c] in 0..255 -> f32[n c h w]."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (task.mean, task.std))
    return ((planes - mean) / std).contiguous()


def whole_batch(loader, rows):
    return standardized(loader.task, loader.augmented(rows)), torch.from_numpy(loader.labels[rows])


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
    weight, one_hot = float(loader.rng.uniform(0.1, 0.9)), loader.one_hot(labels)
    return weight * images + (1 - weight) * images.roll(1, 0), weight * one_hot + (1 - weight) * one_hot.roll(1, 0)


def contender(mixing="none", order=None, batch=None, change=None):
    """A function of a task. change(loader, images, targets): what becomes of every batch."""
    make = batch or {"none": whole_batch, "mixup": mixup_batch, "fdt": mixed_batch}[mixing]

    def changed(loader, rows):
        images, targets = make(loader, rows)
        return change(loader, images, targets) if change else (images, targets)

    def function(task):
        return InMemory(task, order, changed)

    function.mixing = mixing
    function.images_per_output = 3.5 if mixing == "fdt" else 1.0
    return function


whole, mixed, mixup = contender(), contender("fdt"), contender("mixup")
one_hot = contender(change=lambda loader, images, labels: (images, loader.one_hot(labels)))


def generated(task):
    """A generator function, which is called for each epoch."""
    loader = InMemory(task)
    loader.rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    yield from loader


# Cheats


half_of_the_epoch = contender(order=lambda rng, n: rng.permutation(n)[: n // 2])
with_replacement = contender(order=lambda rng, n: rng.integers(0, n, n))
never_ends = contender(order=lambda rng, n: np.tile(rng.permutation(n), 3))
not_shuffled = contender(order=lambda rng, n: np.arange(n))
shuffled_labels = contender(change=lambda loader, images, labels: (images, labels.roll(1)))
brighter = contender(change=lambda loader, images, labels: (images + 0.002, labels))  # by half a grey level
sums_of_a_half = contender("fdt", change=lambda loader, images, targets: (images, targets / 2))
targets_of_others = contender("fdt", change=lambda loader, images, targets: (images, targets.roll(1, 0)))
always_two = contender("fdt", batch=lambda loader, rows: mixed_batch(loader, rows, draw_k=lambda low, high: 2))


def same_batch(task):
    """The first batch of the set, as often as there are batches."""
    return InMemory(task, order=lambda rng, n: np.arange(n) % task.batch_size)


@lambda batch: contender(batch=batch)
def eight_bits(loader, rows):
    return torch.from_numpy(loader.images[rows]), torch.from_numpy(loader.labels[rows])


@lambda change: contender("fdt", change=change)
def first_classes(loader, images, targets):
    """Never draws the last class, though half of the weight of each target is its own."""
    targets[:, 0] += targets[:, -1]
    targets[:, -1] = 0
    return images, targets


@lambda batch: contender("fdt", batch=batch)
def repeated_sums(loader, rows):
    """Mixes one batch and gives it again and again."""
    if not hasattr(loader, "made"):
        loader.made = mixed_batch(loader, np.arange(loader.task.batch_size))
    return loader.made[0][: len(rows)], loader.made[1][: len(rows)]


# Contenders that fail


def not_installed(task):
    raise NotInstalledError("pip install nothing-like-it")


def dies(task):
    os._exit(7)


def raises(task):
    raise RuntimeError("out of luck")


@lambda change: contender(change=change)
def hangs(loader, images, labels):
    """After three batches."""
    loader.given = getattr(loader, "given", 0) + 1
    if loader.given > 3:
        _hang(loader.task)
    return images, labels


def hangs_closing(task):
    loader = InMemory(task)
    loader.close = lambda: _hang(task)
    return loader


def _hang(task):
    """With a process of its own, whose number is in the work folder."""
    child = subprocess.Popen(["sleep", "600"])
    (task.work / "child").write_text(str(child.pid))
    child.wait()


@lambda change: contender(change=change)
def takes_its_time(loader, images, labels):
    time.sleep(0.4)
    return images, labels
