"""One run on several processes: `torchrun --nproc-per-node 2 -m train fit ...`; `reproduce` and `sweep` likewise.

The recipe's batch is the global one, and every rank takes an equal share of it. Resident global batches are the same
for any number of ranks, the mean over the ranks of means over equal shares is the mean over the batch, and batch
normalization takes its statistics over all ranks: so a step is, within rounding, the one that a single process takes.
In one process everything here does nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader.options import checked_device
from fdt_pipeline.loader.ranks import Ranks, find_ranks
from fdt_pipeline.losses import cross_entropy
from train.ddp_batch_norm import synchronize_batch_norm
from train.recipes import Recipe

T = TypeVar("T")

# Torch 2.14 warns of the older name.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def this_rank() -> Ranks:
    return find_ranks(None, None)


def is_first_rank() -> bool:
    """The one that writes files and prints."""
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
    if world_size > 1 and recipe.mixup is not None:
        raise ValueError("mixup pairs the images of a whole batch, which no rank has: train it in one process")
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
    """The same shape, on every rank."""
    if this_rank().world_size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Unchanged, bit for bit, in one process."""
    world_size = this_rank().world_size
    return sum_over_ranks(values) / world_size if world_size > 1 else values


def from_first_rank(make: Callable[[], T]) -> T:
    """What `make` gives on the first rank, on every rank: the others need not see its files."""
    if this_rank().world_size == 1:
        return make()
    values: list[Any] = [make() if is_first_rank() else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def from_each_rank(value: T) -> list[T]:
    """What the ranks have, in their order, on every rank."""
    world_size = this_rank().world_size
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def evaluation_options() -> dict[str, Any]:
    """For FDTLoader: with several ranks, batches as many on each, and weight 0 for what only fills up the last."""
    return {"last_batch": "fill", "weights": True} if this_rank().world_size > 1 else {}


@torch.no_grad()
def evaluate_over_ranks(
    model: nn.Module, loader: FDTLoader, number_format: AbstractContextManager[Any]
) -> tuple[float, float]:
    """`setup.evaluate` with a loader of `evaluation_options()`: the same figures on every rank, each sample counted
    once."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=loader.device)
    with number_format:
        for images, labels, weights in loader:
            logits = model(images).float()
            right = (logits.argmax(1) == labels).to(weights.dtype)
            loss = cross_entropy(logits, labels, reduction="none")
            sums += torch.stack([(weights * right).sum(), (weights * loss).sum()])
    accuracy, loss = (sum_over_ranks(sums) / loader.num_samples).tolist()
    return accuracy, loss
