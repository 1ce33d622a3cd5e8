"""FDT as one writes it in torch without us: vectorized over a batch, or for one output of a whole set.

K is uniform on 1..D, the distinct classes at hand. "A uniform image among those whose class is unused", again and
again, is the order in which classes arrive whose waiting times are exponential with the class's size as rate, and a
uniform image of each: so a batch takes one sort, and no loop. Torch's global generator is drawn from, which a
DataLoader seeds in every worker.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class ClassIndex(NamedTuple):
    """classes i64[d] that have images; counts, starts i64[d]; members i64[n], images by class."""

    classes: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    members: torch.Tensor


class Mixture(NamedTuple):
    """Of n outputs, [n d], constituents in order of weight; those that are not used have weight 0."""

    images: torch.Tensor
    classes: torch.Tensor
    weights: torch.Tensor


def index_classes(labels: torch.Tensor) -> ClassIndex:
    """labels i64[n]"""
    classes, counts = labels.unique(return_counts=True)
    return ClassIndex(classes, counts, counts.cumsum(0) - counts, labels.argsort())


def draw_mixture(index: ClassIndex, num_outputs: int) -> Mixture:
    classes, counts, starts, members = index
    num_distinct = len(classes)
    order = (torch.empty(num_outputs, num_distinct).exponential_() / counts).argsort(1)
    places = torch.arange(num_distinct)
    used = places < torch.randint(1, num_distinct + 1, (num_outputs, 1))
    weights = used / (places + 1)
    sizes = counts[order]
    # float64: a float32 below 1 times a class of 2**25 images would be rounded up to the next class's first one.
    drawn = (torch.rand(num_outputs, num_distinct, dtype=torch.float64) * sizes).long()
    return Mixture(members[starts[order] + drawn], classes[order], weights / weights.sum(1, keepdim=True))


def soft_targets(mixture: Mixture, num_classes: int) -> torch.Tensor:
    """f32[n num_classes]"""
    return torch.zeros(len(mixture.weights), num_classes).scatter_(1, mixture.classes, mixture.weights)


def superpose_batch(images: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """f32[n c h w], i64[n] -> (f32[n c h w], f32[n num_classes]).

    An embedding bag reads just the images that are used; a product with a matrix of weights would read them all.
    """
    mixture = draw_mixture(index_classes(labels), len(labels))
    used = mixture.weights > 0
    numbers = used.sum(1)
    mixed = torch.nn.functional.embedding_bag(
        mixture.images[used], images.flatten(1), numbers.cumsum(0) - numbers, mode="sum",
        per_sample_weights=mixture.weights[used],
    )  # fmt: skip
    return mixed.reshape(images.shape), soft_targets(mixture, num_classes)
