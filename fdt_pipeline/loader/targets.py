"""Soft targets that hold no zeros."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparseTargets(NamedTuple):
    """The same as soft targets f32[n num_classes], for many classes of which few are in a sum of up to k images.

    classes: i64[n k], largest weight first; weights: f32[n k], rows with sum 1. Where fewer than k images were
    superposed the rest is class 0 with weight 0, so a loss is
    `-(weights * log_probabilities.gather(1, classes)).sum(1)`.
    """

    classes: Tensor
    weights: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """f32[n num_classes]."""
        rows = self.weights.new_zeros((len(self.weights), num_classes))
        return rows.scatter_add_(1, self.classes, self.weights)


def sparse_targets(soft: Tensor, most: int) -> SparseTargets:
    """f32[n num_classes], up to `most` of a row above 0."""
    weights, classes = soft.topk(most, dim=1)
    return SparseTargets(torch.where(weights > 0, classes, 0), weights)
