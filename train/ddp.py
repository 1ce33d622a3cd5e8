"""One run on several processes: `torchrun --nproc-per-node 2 -m train fit ...`.

The recipe's batch is the global one, and every rank takes an equal share of it. Resident global batches are the same
for any number of ranks, the mean over the ranks of means over equal shares is the mean over the batch, and batch
normalization takes its statistics over all ranks: so a step is, within rounding, the one that a single process takes.
In one process everything here does nothing.

Batch normalization is torch's SyncBatchNorm on GPUs, which refuses CPU tensors; on CPUs it is the definition, in two
passes, with sums over the ranks that autograd sees through. Statistics of each rank alone would tie a recipe's result
to the number of its ranks: 100 images on four ranks are 25 a rank.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fdt_pipeline.loader.options import checked_device
from fdt_pipeline.loader.order import Ranks, find_ranks
from train.recipes import Recipe

T = TypeVar("T")

# Torch 2.14 warns of the older name.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def this_rank() -> Ranks:
    return find_ranks(None, None)


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and prints."""
    return this_rank().rank == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Yields this rank's device; inside, the ranks of torchrun can talk (gloo on CPUs, nccl on GPUs).

    A group that the caller has made already is taken, and left, as it is.
    """
    if this_rank().world_size == 1:
        yield device
        return
    device = _device_of_this_rank(device)
    if dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        # A thread of gloo that still frees a tensor when Python ends aborts the process (2 of 40 runs on busy cores).
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _device_of_this_rank(device: torch.device) -> torch.device:
    """ValueError where a machine runs more ranks than it has GPUs."""
    if device.type != "cuda":
        return device
    local = int(os.environ.get("LOCAL_RANK", this_rank().rank))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"this machine's rank {local} has no GPU, there are {torch.cuda.device_count()}: start as many processes "
            "(torchrun --nproc-per-node), or pass --device cpu"
        )
    torch.cuda.set_device(local)
    return checked_device(torch.device("cuda", local))


def share_of_batch(recipe: Recipe) -> int:
    """This rank's part of the recipe's batch; ValueError where it cannot be shared out evenly."""
    world_size = this_rank().world_size
    if recipe.batch_size % world_size:
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be shared out evenly among {world_size} ranks: "
            f"pass a --batch-size that {world_size} divides, or start another number of processes"
        )
    return recipe.batch_size // world_size


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """What a training step calls in place of `model`, whose batch normalization is synchronized in place.

    The parameters stay the model's own. Buffers are not sent around: they are the same on all ranks as it is.
    """
    if this_rank().world_size == 1:
        return model
    synchronize_batch_norm(model, device)
    options: dict[str, Any] = {_SENDS_BUFFERS: False}
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, **options)


def sum_over_ranks(values: Tensor) -> Tensor:
    """f[...] -> f[...], the sum on every rank."""
    if this_rank().world_size > 1:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """f[...] -> f[...], the mean on every rank; in one process the values themselves."""
    world_size = this_rank().world_size
    return sum_over_ranks(values) / world_size if world_size > 1 else values


def from_first_rank(make: Callable[[], T]) -> T:
    """The result of `make` on the first rank, given to every rank: the others need not see its files."""
    if this_rank().world_size == 1:
        return make()
    values: list[Any] = [make() if is_first_rank() else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


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
            made = SynchronizedBatchNorm2d(module.num_features, module.eps, module.momentum).train(module.training)
            made._parameters, made._buffers = module._parameters, module._buffers
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """In training, statistics over f32[n c h w] of all ranks, which must have equal shares."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = this_rank().world_size * x.numel() // x.shape[1]
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
        return sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)
