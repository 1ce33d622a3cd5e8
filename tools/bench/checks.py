"""A contender is checked before it is timed, in a process like the one that is timed: one that cheats is refused.

Two small sets of the same form as the one that is raced on: its own images, and flat images whose colour encodes their
class. Without augmentation what comes out can be told apart (laws.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fdt_pipeline.shards import read_manifest

from .laws import F32, Key, Reference, check_agreement, check_law, exact_hashes
from .subsets import CheckSets
from .task import Contender, Entry, Mixing, RefusedError, Task
from .timing import EpochCount

BATCHES = 8  # an epoch of a check has at least 8
SUM = 1e-3  # how far a target's sum may be from 1: what a thousand float32 roundings come to, and more


@dataclass
class Epoch:
    """What a contender gives in an epoch, reduced batch by batch to what the checks need.

    keys: one for each output, which stands for its image. targets: f32[n num_classes] of each batch. means: f32[n c] of
    each batch, 0..255. flatness: how far any pixel is from its image's mean.
    """

    keys: list[Any] = field(default_factory=list)
    targets: list[F32] = field(default_factory=list)
    means: list[F32] = field(default_factory=list)
    flatness: float = 0.0


def check(entry: Entry, task: Task, sets: CheckSets) -> dict[str, Any]:
    """What was seen; RefusedError with the reason for one that cheats.

    In the end it is set up for the race once, so that what it keeps in the work folder is there when it is timed.
    """
    sample, coded = _on(sets.sample, task), _on(sets.coded, task)
    reference = Reference(sample) if entry.mixing == "none" else None
    key = reference.key if reference else exact_hashes
    with _made(entry, sample) as contender:
        epochs = [take_epoch(contender, sample, entry.mixing, number, key) for number in range(2)]
    if reference:
        for epoch in epochs:
            reference.check(epoch.keys, np.concatenate(epoch.targets))
    else:
        keys, targets = [key for epoch in epochs for key in epoch.keys], [t for epoch in epochs for t in epoch.targets]
        check_law(keys, targets, entry.mixing, sample.manifest.samples_per_class)
    _check_shuffled(epochs[0].keys, epochs[1].keys)
    with _made(entry, coded) as contender:
        epoch = take_epoch(contender, coded, entry.mixing, 0, exact_hashes)
    check_agreement(np.concatenate(epoch.means), np.concatenate(epoch.targets), epoch.flatness, coded.manifest.encoding)
    with _made(entry, task):
        return {"images": sample.manifest.num_samples, "in two epochs": sum(len(epoch.keys) for epoch in epochs)}


def _on(shards: Path, task: Task) -> Task:
    """The task without augmentation, on another set; batches so small that leaving out the last is no great part."""
    manifest = read_manifest(shards)
    share = manifest.num_samples // (BATCHES * max(1, task.num_workers))
    work = task.work / "check" / f"{shards.name}-files"
    work.mkdir(parents=True, exist_ok=True)
    return replace(
        task, shards=shards, manifest=manifest, work=work, pad=0, flip=False,
        batch_size=max(1, min(task.batch_size, share)),
    )  # fmt: skip


@contextmanager
def _made(entry: Entry, task: Task) -> Iterator[Contender]:
    contender = entry.make(task)
    try:
        yield contender
    finally:
        contender.close()


def _check_shuffled(first: list[Any], second: list[Any]) -> None:
    """RefusedError unless every epoch has an order of its own."""
    same = [
        a == b if isinstance(a, bytes) else bool(abs(a - b).max() < 1e-3) for a, b in zip(first, second, strict=False)
    ]
    if sum(same) > len(same) / 2:
        raise RefusedError(
            f"{sum(same)} of {len(same)} images come at the same place in two epochs: it does not shuffle"
        )


def take_epoch(contender: Contender, task: Task, mixing: Mixing, number: int, key: Key) -> Epoch:
    """RefusedError for a wrong form, and for too few or too many images."""
    epoch, count = Epoch(), EpochCount(task)
    for batch in contender.epoch(number):
        _check_form(batch, task, mixing)
        images, targets = batch
        count.add(len(images))
        pixels = to_u8_range(images, task)
        means = pixels.mean((2, 3), keepdim=True)
        epoch.keys += key(pixels)
        epoch.targets.append(_one_hot(targets, task.num_classes).numpy())
        epoch.means.append(means[..., 0, 0].numpy())
        epoch.flatness = max(epoch.flatness, float((pixels - means).abs().max()))
    count.end(number)
    return epoch


def to_u8_range(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Standardized -> f32[n c h w], a copy on the CPU in 0..255."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (task.mean, task.std))
    return images.detach().cpu() * std + mean


def _one_hot(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """i64[n] or f32[n num_classes] -> f32[n num_classes], a copy on the CPU."""
    if targets.ndim == 1:
        return torch.nn.functional.one_hot(targets.cpu(), num_classes).float()
    return targets.detach().cpu().clone()


def _check_form(batch: Any, task: Task, mixing: Mixing) -> None:
    """RefusedError unless the batch is (images, targets) as the task says."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise RefusedError(f"a batch must be (images, targets), got {type(batch).__name__}")
    images, targets = batch
    for name, tensor in (("images", images), ("targets", targets)):
        if not isinstance(tensor, torch.Tensor):
            raise RefusedError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device.type != torch.device(task.device).type:
            raise RefusedError(f"{name} must be on {task.device}, got {tensor.device}")
    _check_images(images, task)
    if len(targets) != len(images):
        raise RefusedError(f"expected a target an image, got {len(images)} images and {len(targets)} targets")
    if targets.ndim == 1 and mixing == "none":
        _check_labels(targets, task.num_classes)
    else:
        _check_soft(targets, task.num_classes)


def _check_images(images: torch.Tensor, task: Task) -> None:
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != task.shape or images.ndim != 4:
        raise RefusedError(
            f"images must be float32 [n {' '.join(map(str, task.shape))}], got {images.dtype} {list(images.shape)}"
        )
    if not 1 <= len(images) <= task.batch_size:
        raise RefusedError(f"a batch must have 1 to {task.batch_size} images, got {len(images)}")
    if not torch.isfinite(images).all():
        raise RefusedError("images must be finite")


def _check_labels(labels: torch.Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64:
        raise RefusedError(f"labels must be int64, got {labels.dtype}")
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise RefusedError(f"labels must be in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}")


def _check_soft(targets: torch.Tensor, num_classes: int) -> None:
    if targets.dtype != torch.float32 or tuple(targets.shape[1:]) != (num_classes,):
        raise RefusedError(f"targets must be float32 [n {num_classes}], got {targets.dtype} {list(targets.shape)}")
    if (targets < 0).any() or not ((targets.sum(1) - 1).abs() <= SUM).all():
        worst = targets.sum(1)[(targets.sum(1) - 1).abs().argmax()]
        raise RefusedError(
            f"targets must be at least 0 and sum to 1, got {targets.min():.4g} at least, a sum {worst:.4g}"
        )
