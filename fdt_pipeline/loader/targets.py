"""Soft targets that hold no zeros."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SparseTargets(NamedTuple):
    """Classes i64[n k], largest weight first, and their weights f32[n k]. A loss of log probabilities [n num_classes]
    is `-(weights * log_probabilities.gather(1, classes)).sum(1)`."""

    classes: Tensor
    weights: Tensor


def sparse_targets(targets: Tensor, k: int) -> SparseTargets:
    """Soft targets f32[n num_classes] -> the same as their k largest classes, for many classes of which few are mixed.

    k: the most images of a sum, `mix.most_images(num_classes)`; where an output has fewer, the rest has class 0 and
    weight 0. ValueError where a target has more than k classes, as its weights would no longer sum to 1.
    """
    most = int((targets > 0).sum(1).max()) if len(targets) else 0
    if most > k:
        raise ValueError(f"a target has {most} classes, more than k={k}: pass k={most} or more")
    weights, classes = targets.topk(min(k, targets.shape[1]), dim=1)
    return SparseTargets(classes.where(weights > 0, classes.new_zeros(())), weights)
