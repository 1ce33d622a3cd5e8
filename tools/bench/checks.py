"""A contender is checked before it is timed, in a process like the one that is timed: one that cheats is refused.

Two small sets of the same form as the one that is raced on: its own images, and flat images whose colour encodes their
class. Without augmentation what comes out can be told apart: whole images once each, mixed ones by their law, and
targets that say what is in an image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fdt_pipeline.shards import read_manifest

from .laws import check_law
from .subsets import CheckSets, Key, Reference, exact_hashes, levels
from .task import Contender, Entry, Mixing, Task, require
from .timing import EpochCount

F32 = npt.NDArray[np.float32]

BATCHES = 8  # an epoch of a check has at least 8
# How far an honest contender may be from each law:
SUM = 1e-3  # of a target from 1: what a thousand float32 roundings come to, and more
COLOUR = 0.1  # grey levels of a flat image, where nothing is lost: float32 leaves 0.001
LOSSY_COLOUR = 3.0  # the same for JPEG
IN_PLACE = 0.5  # share of images that may come at the same place in two epochs


@dataclass
class Epoch:
    """What a contender gives in an epoch, reduced batch by batch to what the checks need.

    keys: one for each output, which stands for its image. targets: f32[n num_classes] of each batch. means: f32[n c] of
    each batch, 0..255. off: how far any pixel is from what it may be.
    """

    keys: list[Any] = field(default_factory=list)
    targets: list[F32] = field(default_factory=list)
    means: list[F32] = field(default_factory=list)
    off: float = 0.0


def check(entry: Entry, task: Task, sets: CheckSets) -> dict[str, Any]:
    """What was seen; RefusedError with the reason for one that cheats.

    In the end it is set up for the race once, so that what it keeps in the work folder is there when it is timed.
    """
    sample, coded = _on(sets.sample, task), _on(sets.coded, task)
    reference = Reference(sample) if entry.mixing == "none" else None
    key = reference.key if reference else exact_hashes
    with closing(entry.make(sample)) as contender:
        epochs = [take_epoch(contender, sample, entry.mixing, number, key) for number in range(2)]
    if reference:
        for epoch in epochs:
            reference.check(epoch.keys, np.concatenate(epoch.targets))
    else:
        keys, targets = [key for epoch in epochs for key in epoch.keys], [t for epoch in epochs for t in epoch.targets]
        check_law(keys, targets, entry.mixing, sample.manifest.samples_per_class, sample.shape[1:], entry.max_images)
    _check_shuffled(epochs[0].keys, epochs[1].keys)
    with closing(entry.make(coded)) as contender:
        off = off_the_classes_colours if entry.mixing == "cutmix" else off_the_mean
        epoch = take_epoch(contender, coded, entry.mixing, 0, exact_hashes, off)
    check_agreement(np.concatenate(epoch.means), np.concatenate(epoch.targets), epoch.off, coded.manifest.encoding)
    with closing(entry.make(task)):
        return {"images": sample.manifest.num_samples, "in two epochs": sum(len(epoch.keys) for epoch in epochs)}


def _on(shards: Path, task: Task) -> Task:
    """The task without augmentation, whole images at its size, on another set; batches so small that leaving out the
    last is no great part."""
    manifest = read_manifest(shards)
    share = manifest.num_samples // (BATCHES * max(1, task.num_workers))
    work = task.work / "check" / f"{shards.name}-files"
    work.mkdir(parents=True, exist_ok=True)
    return replace(
        task, shards=shards, manifest=manifest, work=work, pad=0, flip=False, crop=False,
        batch_size=max(1, min(task.batch_size, share)),
    )  # fmt: skip


def _check_shuffled(first: list[Any], second: list[Any]) -> None:
    """Every epoch has an order of its own."""
    pairs = list(zip(first, second, strict=False))
    same = sum(a == b if isinstance(a, bytes) else bool(abs(a - b).max() < 1e-3) for a, b in pairs)
    require(
        same <= IN_PLACE * len(pairs),
        f"{same} of {len(pairs)} images come at the same place in two epochs: it does not shuffle",
    )


def off_the_mean(pixels: torch.Tensor) -> float:
    """f32[n c h w] -> how far any pixel is from its image's mean."""
    return float((pixels - pixels.mean((2, 3), keepdim=True)).abs().max())


def off_the_classes_colours(pixels: torch.Tensor) -> float:
    """f32[n c h w] -> how far any pixel is from the nearest colour that encodes a class, as CutMix shows them."""
    colours = torch.from_numpy(levels(pixels.shape[1])).float()
    return float(torch.stack([(pixels - colour[:, None, None]).abs().amax(1) for colour in colours]).amin(0).max())


def take_epoch(
    contender: Contender,
    task: Task,
    mixing: Mixing,
    number: int,
    key: Key,
    off: Callable[[torch.Tensor], float] = off_the_mean,
) -> Epoch:
    """RefusedError for a wrong form, and for too few or too many images."""
    epoch, count = Epoch(), EpochCount(task)
    for batch in contender.epoch(number):
        _check_form(batch, task, mixing)
        images, targets = batch
        count.add(len(images))
        pixels = to_u8_range(images, task)
        epoch.keys += key(pixels)
        epoch.targets.append(_one_hot(targets, task.num_classes).numpy())
        epoch.means.append(pixels.mean((2, 3)).numpy())
        epoch.off = max(epoch.off, off(pixels))
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
    """The batch is (images, targets) as the task says."""
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    require(is_pair, f"a batch must be (images, targets), got {type(batch).__name__}")
    images, targets = batch
    for name, tensor in (("images", images), ("targets", targets)):
        require(isinstance(tensor, torch.Tensor), f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        on_device = tensor.device.type == torch.device(task.device).type
        require(on_device, f"{name} must be on {task.device}, got {tensor.device}")
    is_image = images.dtype == torch.float32 and images.ndim == 4 and tuple(images.shape[1:]) == task.shape
    shape = " ".join(map(str, task.shape))
    require(is_image, f"images must be float32 [n {shape}], got {images.dtype} {list(images.shape)}")
    n, most = len(images), task.batch_size
    require(1 <= n <= most, f"a batch must have 1 to {most} images, got {n}")
    require(torch.isfinite(images).all(), "images must be finite")
    require(len(targets) == n, f"expected a target an image, got {n} images and {len(targets)} targets")
    num_classes = task.num_classes
    if targets.ndim == 1 and mixing == "none":
        least, most = targets.min(), targets.max()
        require(targets.dtype == torch.int64, f"labels must be int64, got {targets.dtype}")
        in_range = 0 <= least <= most < num_classes
        require(in_range, f"labels must be in 0..{num_classes - 1}, got {least} to {most}")
        return
    is_soft = targets.dtype == torch.float32 and tuple(targets.shape[1:]) == (num_classes,)
    require(is_soft, f"targets must be float32 [n {num_classes}], got {targets.dtype} {list(targets.shape)}")
    least, sums = targets.min(), targets.sum(1)
    worst = sums[(sums - 1).abs().argmax()]
    is_distribution = least >= 0 and (worst - 1).abs() <= SUM
    require(is_distribution, f"targets must be at least 0 and sum to 1, got {least:.4g} at least, a sum {worst:.4g}")


def check_agreement(means: F32, targets: F32, pixels_off: float, encoding: str) -> None:
    """RefusedError unless flat images whose colour encodes their class are mixed as their targets say.

    means: f32[n c], 0..255; pixels_off: how far any pixel is from what it may be.
    """
    tolerance = LOSSY_COLOUR if encoding in ("jpg", "keep") else COLOUR
    expected = targets @ levels(means.shape[1])
    off = np.abs(means - expected).max(1)
    worst = int(off.argmax())
    colour, said = np.round(means[worst], 1).tolist(), np.round(expected[worst], 1).tolist()
    require(
        off[worst] <= tolerance,
        f"{(off > tolerance).sum()} of {len(means)} images are not what their targets say: of flat images one has the "
        f"colour {colour}, its target {said}",
    )
    is_flat = pixels_off <= tolerance
    require(is_flat, f"flat images come out with pixels {pixels_off:.3g} from what they may be, augmentation off")
