"""The superpose stage as DALI calls it: a batch of samples in, a batch of finished outputs out, by the torch engine.

DALI hands samples over as DLPack capsules, on a thread of its own. A stage keeps no state from batch to batch: epoch
and number of every output come with it, so what it makes does not depend on what ran before. Numbers below zero are
padding (a last batch that is not full); their outputs are zeros, which the loader cuts off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

from fdt_pipeline.definition.plans import Plans, batch_targets, draw_plans, pack_plans
from fdt_pipeline.definition.superposition import FDT, PLAIN, Augment, Pool, epoch_order
from fdt_pipeline.loader.engine import ImagePool, Output, stack_images, superpose

Capsules = list[Any]
Stage = Callable[..., tuple[Capsules, ...]]


@dataclass(frozen=True)
class Mixing:
    """What every output is a function of, beside its epoch and number."""

    seed: int
    fdt: FDT
    augment: Augment
    num_classes: int
    output: Output
    soft: bool = True  # f32 soft targets; False gives the int64 label of the first image

    def unmixed(self) -> Mixing:
        """Whole images, each leading once an epoch, with augmentation and targets as they are."""
        return replace(self, fdt=replace(PLAIN, targets=self.fdt.targets))

    def targets(self, plans: Plans) -> torch.Tensor:
        if self.soft:
            return torch.from_numpy(batch_targets(plans, self.num_classes, self.fdt.targets))
        return torch.from_numpy(plans.classes[plans.offsets[:-1]])


class ResidentStage:
    """Draws from the whole data set. in_order: output i is image i (evaluation), else the epoch's order leads."""

    def __init__(self, mixing: Mixing, labels: Pool, images: ImagePool | None, in_order: bool) -> None:
        self.mixing, self.labels, self.images, self.in_order = mixing, labels, images, in_order
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def plans(self, epoch: int, indices: npt.NDArray[np.int64]) -> Plans:
        mixing = self.mixing
        leaders = self._leaders(epoch, indices) if mixing.fdt.anchor == "epoch" else None
        return draw_plans(mixing.seed, epoch, indices, self.labels, mixing.fdt, mixing.augment, leaders)

    def _leaders(self, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.in_order:
            return indices
        order = self._order
        if order is None or order[0] != epoch:
            self._order = order = (epoch, epoch_order(self.mixing.seed, epoch, len(self.labels)))
        return order[1][indices]

    def __call__(self, numbers: Capsules) -> tuple[Capsules, ...]:
        epoch, indices = _unpack_numbers(numbers)
        plans = self.plans(epoch, indices)
        targets = _padded(self.mixing.targets(plans), len(numbers))
        if self.images is None:
            return *map(_capsules, _packed(plans, len(numbers), self.labels)), _capsules(targets)
        images = _dali_layout(superpose(self.images, plans, self.mixing.output), self.mixing.output)
        return _capsules(_padded(images, len(numbers))), _capsules(targets)


class WindowStage:
    """Mixes within one DALI batch, the mix window; its samples come in the order of the stream, padding last."""

    def __init__(self, mixing: Mixing, pass_images: bool = False) -> None:
        self.mixing, self.pass_images = mixing, pass_images

    def __call__(self, images: Capsules, labels: Capsules, numbers: Capsules) -> tuple[Capsules, ...]:
        mixing, total = self.mixing, len(numbers)
        epoch, indices = _unpack_numbers(numbers)
        pixels = stack_images([from_dlpack(image) for image in images[: len(indices)]])
        pool = Pool([int(from_dlpack(label)) for label in labels[: len(indices)]], mixing.num_classes)
        leaders = np.arange(len(pool)) if mixing.fdt.anchor == "epoch" else None
        plans = draw_plans(mixing.seed, epoch, indices, pool, mixing.fdt, mixing.augment, leaders)
        targets = _capsules(_padded(mixing.targets(plans), total))
        if self.pass_images:
            return _capsules(_padded(pixels, total)), *map(_capsules, _packed(plans, total, pool)), targets
        mixed = superpose(ImagePool(pixels, mixing.augment.pad), plans, mixing.output)
        return _capsules(_padded(_dali_layout(mixed, mixing.output), total)), targets


def _unpack_numbers(numbers: Capsules) -> tuple[int, npt.NDArray[np.int64]]:
    """Capsules of (epoch, index) -> epoch, the indices that are not padding."""
    pairs = torch.stack([from_dlpack(number) for number in numbers]).numpy()
    return int(pairs[0, 0]), pairs[pairs[:, 1] >= 0, 1]


def _padded(batch: torch.Tensor, total: int) -> torch.Tensor:
    return batch if len(batch) == total else torch.cat([batch, batch.new_zeros((total - len(batch), *batch.shape[1:]))])


def _dali_layout(images: torch.Tensor, output: Output) -> torch.Tensor:
    """DALI takes dense samples only, so channels_last goes through it as HWC."""
    return images.permute(0, 2, 3, 1) if output.channels_last else images


def _packed(plans: Plans, total: int, pool: Pool) -> Sequence[torch.Tensor]:
    return [_padded(torch.from_numpy(field), total) for field in pack_plans(plans, pool.num_classes)]


def _capsules(batch: torch.Tensor) -> Capsules:
    return [to_dlpack(sample) for sample in batch]
