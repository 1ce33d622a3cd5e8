"""The losses of the paper: cross entropy (Algorithm 3) and the multi-label loss (Algorithm 4); sparse soft targets.

The paper prints the gradient of Algorithm 4, not a loss. Per sample, with P = softmax(z), the gradient is P - GT where
GT > eps and P elsewhere, which is, for every GT, the gradient of

    Phi(z) = logsumexp(z) - <GT * 1[GT > eps], z>.

If every positive weight of GT is above eps and the weights sum to 1, Phi is the cross entropy of a soft target.
Targets and losses are float32 (or float64) under autocast too: bfloat16 would round every weight by up to 0.2 %.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]

DEFAULT_EPS = 1e-6


def multi_label_loss(
    logits: Tensor, targets: Tensor, eps: float = DEFAULT_EPS, reduction: Reduction = "mean"
) -> Tensor:
    """Phi, in nats: f32[n C], f32[n C] -> f32[], or f32[n] for "none"; "mean" is Phi / B, Algorithm 4's Scale = 1/B.

    Negative weights, and weights up to eps, count as zero. Check eps once, before training, with `check_eps`.
    """
    _check_soft_targets(logits, targets)
    logits = _at_least_float32(logits)
    counted = torch.where(targets > eps, targets, torch.zeros_like(targets))
    return _reduce(torch.logsumexp(logits, dim=1) - (counted * logits).sum(dim=1), reduction)


def cross_entropy(logits: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Algorithm 3, in nats: hard labels i64[n] in 0..C-1, or soft targets f32[n C], where every weight counts.

    For class weights use torch's own, with the mean that `FDTLoader` shows under targets.
    There is no label that means "ignore": a label outside 0..C-1 is torch's error, -100 too.
    """
    if targets.dim() == 2:
        return multi_label_loss(logits, targets, eps=0.0, reduction=reduction)
    _check_logits(logits)
    if targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"expected labels i64[{len(logits)}] for logits of shape {tuple(logits.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}; "
            "pass one class index a sample, or soft targets of the shape of the logits"
        )
    per_sample = F.cross_entropy(_at_least_float32(logits), targets, reduction="none", ignore_index=_NO_LABEL)
    return _reduce(per_sample, reduction)


def kl_to_target(logits: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """KL(target || softmax(logits)) = Phi minus the target's entropy, in nats; for the log, so it has no gradient.

    For targets that sum to 1 the minimum is 0, reached where softmax(logits) is the target; rounding may leave it at
    -1e-7. Phi alone does not show how far the model is from its optimum: its minimum is the entropy of the target.
    """
    _check_soft_targets(logits, targets)
    with torch.no_grad():
        log_p = F.log_softmax(_at_least_float32(logits), dim=1)
        return _reduce((torch.xlogy(targets, targets) - targets * log_p).sum(dim=1), reduction)


def check_eps(eps: float, num_classes: int) -> None:
    """ValueError unless 0 <= eps < 1 / (C * H_C), the weight of the last of C superposed images: the smallest that FDT
    gives (Eq. 3, K = C). A larger eps would drop images from the target."""
    limit = 1.0 / (num_classes * sum(1.0 / i for i in range(1, num_classes + 1)))
    if not 0.0 <= eps < limit:
        raise ValueError(
            f"expected 0 <= eps < {limit:.4g}, the smallest weight that a target over {num_classes} classes can hold, "
            f"got {eps}; lower eps (the default is {DEFAULT_EPS})"
        )


_NO_LABEL = torch.iinfo(torch.int64).min  # torch would otherwise skip label -100 in silence


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _reduce(per_sample: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "mean":
        return per_sample.mean()
    if reduction == "sum":
        return per_sample.sum()
    if reduction == "none":
        return per_sample
    raise ValueError(f'expected reduction "mean", "sum" or "none", got {reduction!r}')


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or 0 in logits.shape:
        raise ValueError(f"expected logits of shape [n C] with n, C >= 1, got {tuple(logits.shape)}")


def _check_soft_targets(logits: Tensor, targets: Tensor) -> None:
    _check_logits(logits)
    if targets.shape != logits.shape:
        raise ValueError(
            f"expected targets of the shape of the logits, {tuple(logits.shape)}, got {tuple(targets.shape)}; "
            "one weight for every sample and class"
        )
    if targets.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"expected float32 targets, got {targets.dtype}; keep targets out of autocast and half precision"
        )


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
