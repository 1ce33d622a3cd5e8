"""Contenders for the tests of `python -m tools bench`: made of NumPy and a set in memory."""

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


def mixup_batch(loader, rows, weight=None):
    """Pairs of a batch."""
    images, labels = whole_batch(loader, rows)
    weight = float(loader.rng.uniform()) if weight is None else weight
    return mixed_with_the_one_before(weight, images), mixed_with_the_one_before(weight, loader.one_hot(labels))


def mixed_with_the_one_before(weight, rows):
    return weight * rows + (1 - weight) * rows.roll(1, 0)


def cutmix_batch(loader, rows):
    """Pairs of a batch, and a box for all of it."""
    images, labels = whole_batch(loader, rows)
    ends = box_ends(loader.rng, images.shape[2:])
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[tuple(slice(*end) for end in ends)] = True
    mixed = torch.where(inside, images.roll(1, 0), images)
    return mixed, mixed_with_the_one_before(1 - float(inside.float().mean()), loader.one_hot(labels))


def box_ends(rng, size):
    """(top, bottom), (left, right) by the paper's formula, with alpha = 1."""
    share = rng.uniform() ** 0.5 / 2
    middles = [(int(rng.integers(length)), int(share * length), length) for length in size]
    return [(max(middle - half, 0), min(middle + half, length)) for middle, half, length in middles]


BATCHES = {"none": whole_batch, "mixup": mixup_batch, "cutmix": cutmix_batch, "fdt": mixed_batch}


def contender(mixing="none", order=None, batch=None, change=None):
    """A function of a task. change(loader, images, targets): what becomes of every batch."""
    make = batch or BATCHES[mixing]

    def changed(loader, rows):
        images, targets = make(loader, rows)
        return change(loader, images, targets) if change else (images, targets)

    def function(task):
        return InMemory(task, order, changed)

    function.mixing = mixing
    return function


whole, mixed = contender(), contender("fdt")
half_of_the_epoch = contender(order=lambda rng, n: rng.permutation(n)[: n // 2])


def generated(task):
    """A generator function, which is called for each epoch."""
    loader = InMemory(task)
    loader.rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    yield from loader


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
def takes_its_time(loader, *batch):
    """In the race; the checks, which leave out augmentation, would take too long."""
    time.sleep(0.4 if loader.task.pad else 0)
    return batch
