"""Batch normalization over the global batch, whatever number of ranks shares it.

On GPUs it is torch's SyncBatchNorm, which refuses CPU tensors; on CPUs it is the definition, in two passes, with sums
over the ranks that autograd sees through. Per-rank statistics would tie a recipe's result to the number of its ranks:
100 images on four ranks are 25 a rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """In place; parameters and buffers stay the same objects under the same names.

    ValueError for batch normalization of a kind that is not synchronized here, which would be wrong in silence.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) is not nn.BatchNorm2d or not (module.affine and module.track_running_stats and module.momentum):
            raise ValueError(
                f"{name} is a {module}: only an affine BatchNorm2d with running statistics is synchronized"
            )
        if device.type == "cuda":
            made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        else:
            made = _adopted(module)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made)


def _adopted(module: nn.BatchNorm2d) -> nn.BatchNorm2d:
    made = SynchronizedBatchNorm2d(module.num_features, module.eps, module.momentum)
    made._parameters, made._buffers = module._parameters, module._buffers
    return made.train(module.training)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """In training, statistics over f32[n c h w] of all ranks, which must have equal shares."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = dist.get_world_size() * x.numel() // x.shape[1]
        mean = _sum(x) / count
        centred = x - mean
        variance = _sum(centred.square()) / count  # not E[x^2] - mean^2, which loses digits where |mean| >> deviation
        self._track(mean.detach().flatten(), variance.detach().flatten() * (count / max(count - 1, 1)))
        scale = self.weight.view(-1, 1, 1) * torch.rsqrt(variance + self.eps)
        return centred * scale + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(value, self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def _sum(x: Tensor) -> Tensor:
    """f32[n c h w] -> f32[1 c 1 1]: over the images and pixels of all ranks."""
    return _SumOverRanks.apply(x.sum((0, 2, 3), keepdim=True))


class _SumOverRanks(torch.autograd.Function):
    """The loss of every rank depends on the sum, so what they owe to it is summed on the way back as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x
