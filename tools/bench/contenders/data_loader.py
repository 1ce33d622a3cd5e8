"""PyTorch without us: its DataLoader with torchvision's transforms v2, FDT as one writes it there, a loader on the GPU.

K is uniform on 1..D, the distinct classes at hand. "A uniform image among those whose class is unused", again and
again, is the order in which classes arrive whose waiting times are exponential with the class's size as rate, and a
uniform image of each: so a batch takes one sort, and no loop. Torch's global generator is drawn from, which a
DataLoader seeds in every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, default_collate

from ..task import Batch, Entry, Task
from .images import (
    LoaderEpochs,
    arrays,
    augmentation,
    framed,
    image_files,
    is_raw,
    read_pil,
    read_tensor,
    standardized,
    torchvision_v2,
    whole_transform,
)


class WholeImages(Dataset[Any]):
    """Images in memory where their shards hold arrays, else image files; as tensors, or as PIL images.

    They are held as torchvision's CIFAR10 and ImageFolder do, but tensors are u8 [c h w] from the start.
    """

    def __init__(self, task: Task, pil: bool, transform: Callable[[Any], Any] | None = None) -> None:
        self.transform = transform or whole_transform(task, pil)
        self._channels, self._pil = task.manifest.channels, pil
        self._images: Any = None
        self._labels: Any
        if is_raw(task):
            self._images, self._labels = arrays(task)
            if not pil:
                self._images = torch.from_numpy(self._images).permute(0, 3, 1, 2).contiguous()
        else:
            self._paths, self._labels = zip(*image_files(task), strict=True)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if self._images is None:
            image = (read_pil if self._pil else read_tensor)(self._paths[i], self._channels)
        elif self._pil:
            image = Image.fromarray(self._images[i].squeeze(2) if self._channels == 1 else self._images[i])
        else:
            image = self._images[i]
        return self.transform(image), int(self._labels[i])


class Superposed(Dataset[Any]):
    """FDT over the whole set, in memory: __getitem__ draws K images, shifts and flips each, and sums them.

    Lean: images have their frame of zeros already, so a shift and a flip are a view, and what is summed is standardized
    once: torchvision's transforms of each image would be its largest cost.
    """

    def __init__(self, task: Task) -> None:
        images, self._labels = arrays(task)
        self._framed = framed(images, task.pad)
        self._task, self._index = task, index_classes(torch.as_tensor(self._labels))
        self._mean, self._std = (np.array(values, np.float32) for values in (task.mean, task.std))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, _: int) -> tuple[torch.Tensor, torch.Tensor]:
        task = self._task
        c, h, w = task.shape
        mixture = draw_mixture(self._index, 1)
        num_images = int((mixture.weights > 0).sum())
        shifts = torch.randint(0, 2 * task.pad + 1, (num_images, 2)).tolist()
        flips = torch.randint(0, 2, (num_images,)).tolist() if task.flip else [0] * num_images
        total, weighted = np.zeros((h, w, c), np.float32), np.empty((h, w, c), np.float32)
        # What is not used has weight 0 and comes last: zip ends at the shifts.
        constituents = zip(mixture.images[0].tolist(), mixture.weights[0].tolist(), shifts, flips, strict=False)
        for image, weight, (dy, dx), flip in constituents:
            crop = self._framed[image, dy : dy + h, dx : dx + w]
            np.multiply(crop[:, ::-1] if flip else crop, np.float32(weight), out=weighted)
            total += weighted
        total -= self._mean
        total /= self._std
        return torch.from_numpy(total).permute(2, 0, 1), soft_targets(mixture, task.num_classes)[0]


class ClassIndex(NamedTuple):
    """classes i64[d] that have images; counts, starts i64[d]; members i64[n], images by class."""

    classes: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    members: torch.Tensor


class Mixture(NamedTuple):
    """The constituents of n outputs, each [n d], in order of weight; those that are not used have weight 0."""

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


def loader_options(task: Task) -> dict[str, Any]:
    """num_workers processes that stay from epoch to epoch; pinned batches for a GPU."""
    return {
        "batch_size": task.batch_size,
        "num_workers": task.num_workers,
        "persistent_workers": task.num_workers > 0,
        "pin_memory": task.device != "cpu",
        "generator": torch.Generator().manual_seed(task.seed),
    }


def _whole(task: Task, mix: Callable[[torch.Tensor, torch.Tensor], Batch] | None = None) -> LoaderEpochs:
    """mix: what becomes of a batch in the collate function, as torchvision's documentation has it.

    Without it, image files stay u8 as far as the trainer's process, which standardizes a batch at once: 15 % faster at
    224 x 224 than in the workers.
    """
    if mix is None and not is_raw(task):
        v2 = torchvision_v2()
        images = WholeImages(task, pil=False, transform=v2.Compose(augmentation(task) or [v2.Identity()]))
        loader = DataLoader(images, shuffle=True, **loader_options(task))
        return LoaderEpochs(loader, task, lambda u8, labels: (standardized(u8, task), labels))
    collate = partial(_mixed, mix) if mix else None
    loader = DataLoader(WholeImages(task, pil=False), shuffle=True, collate_fn=collate, **loader_options(task))
    return LoaderEpochs(loader, task)


def _mixed(mix: Callable[[torch.Tensor, torch.Tensor], Batch], samples: list[Any]) -> Batch:
    """Of the module: the bench spawns processes, and what they send to workers is pickled."""
    return mix(*default_collate(samples))


class GpuImages:
    """The whole set is on the GPU as f[n c h w], standardized and framed by zeros; an epoch flips and crops it there.

    The idea of airbench's loader in our own words: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv
    2404.00498. It also runs on a CPU, where nobody would use it.
    """

    def __init__(self, task: Task) -> None:
        arrays_u8, labels = arrays(task)
        u8 = torch.from_numpy(arrays_u8).to(task.device).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(value, device=task.device).reshape(1, -1, 1, 1) for value in (task.mean, task.std))
        images = (pad(u8, (task.pad,) * 4).float() - mean) / std
        self._images = images.half() if task.half else images
        self._labels = torch.from_numpy(labels).to(task.device)
        self._task = task
        self._generator = torch.Generator(task.device).manual_seed(task.seed)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The whole set is cropped and flipped at once, then batches are rows of it in a new order."""
        images = self._images
        n, (_, h, w) = len(images), self._task.shape
        device, generator = images.device, self._generator
        if self._task.pad:
            shifts = torch.randint(2 * self._task.pad + 1, (2, n, 1), generator=generator, device=device)
            rows, columns = shifts[0] + torch.arange(h, device=device), shifts[1] + torch.arange(w, device=device)
            each = torch.arange(n, device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self._task.flip:
            odds = torch.rand(n, 1, 1, 1, generator=generator, device=device)
            images = torch.where(odds < 0.5, images.flip(-1), images)
        order = torch.randperm(n, generator=generator, device=device)
        for rows in order.split(self._task.batch_size):
            yield images[rows], self._labels[rows]

    def close(self) -> None:
        del self._images, self._labels


ENTRIES = (
    Entry("DataLoader, torchvision", "none", _whole, note="u8 tensors from the start; files are u8 to the end"),
    Entry(
        "DataLoader, torchvision, MixUp", "mixup",
        lambda task: _whole(task, torchvision_v2().MixUp(num_classes=task.num_classes)),
        note="v2.MixUp when collating",
    ),
    Entry(
        "DataLoader, torchvision, CutMix", "cutmix",
        lambda task: _whole(task, torchvision_v2().CutMix(num_classes=task.num_classes)),
        note="v2.CutMix when collating",
    ),
    Entry(
        "DataLoader, torchvision, FDT in the batch", "fdt in the batch",
        lambda task: _whole(task, partial(superpose_batch, num_classes=task.num_classes)),
        note="vectorized torch when collating; K is at most the number of classes in a batch",
    ),
    Entry(
        "DataLoader, FDT over the set", "fdt",
        lambda task: LoaderEpochs(DataLoader(Superposed(task), **loader_options(task)), task),
        note="sums NumPy views in __getitem__; the decoded set in memory",
    ),
    Entry(
        "GPU, as airbench", "none", GpuImages, needs_gpu=True,
        note="our own short version of airbench's loader: the decoded set on the GPU, crops and flips by indexing",
    ),
)  # fmt: skip
