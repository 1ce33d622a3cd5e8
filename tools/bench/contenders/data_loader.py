"""PyTorch's DataLoader with torchvision's transforms v2: what most people have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from ..task import Entry, Task
from .epochs import Batch, LoaderEpochs, to_device
from .images import arrays, image_files, is_raw, read_pil, read_tensor
from .installed import torchvision_v2
from .superposing import superpose_batch
from .transforms import from_pil, whole_transform


class TensorImages(Dataset[Any]):
    """u8[n c h w] in memory, as tensors from the start."""

    def __init__(self, task: Task) -> None:
        images, labels = arrays(task)
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self._labels = labels.tolist()
        self._transform = whole_transform(task)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[i]), self._labels[i]


class PilImages(Dataset[Any]):
    """As torchvision.datasets.CIFAR10: u8[n h w c] in memory, a PIL image of each when it is asked for."""

    def __init__(self, task: Task) -> None:
        self._images, self._labels = arrays(task)
        self.transform = from_pil(task)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        pixels = self._images[i]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), int(self._labels[i])


class ImageFiles(Dataset[Any]):
    """As torchvision.datasets.ImageFolder; files become tensors at once, or PIL images."""

    def __init__(self, task: Task, pil: bool) -> None:
        self._files, self._channels, self._read = (
            image_files(task),
            task.manifest.channels,
            read_pil if pil else read_tensor,
        )
        self.transform = from_pil(task) if pil else whole_transform(task)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        path, label = self._files[i]
        return self.transform(self._read(path, self._channels)), label


def whole_images(task: Task, pil: bool) -> Dataset[Any]:
    if is_raw(task) and task.size in (None, task.manifest.shape and task.manifest.shape[:2]):
        return PilImages(task) if pil else TensorImages(task)
    if is_raw(task):
        raise ValueError("a set of raw shards keeps its size here: leave --size out")
    return ImageFiles(task, pil)


class MixUp:
    """torchvision's, in the collate function, as its documentation has it."""

    def __init__(self, num_classes: int) -> None:
        self._mix = torchvision_v2().MixUp(num_classes=num_classes)

    def __call__(self, samples: list[Any]) -> Batch:
        return self._mix(*default_collate(samples))


class FdtInBatch:
    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def __call__(self, samples: list[Any]) -> Batch:
        images, labels = default_collate(samples)
        return superpose_batch(images, labels, self._num_classes)


def data_loader(task: Task, dataset: Dataset[Any], shuffle: bool = True, collate: Any = None) -> LoaderEpochs:
    """num_workers processes that stay from epoch to epoch, all images of an epoch, pinned for a GPU."""
    return LoaderEpochs(
        DataLoader(dataset, shuffle=shuffle, collate_fn=collate, **loader_options(task)), partial(to_device, task=task)
    )


def loader_options(task: Task) -> dict[str, Any]:
    return {
        "batch_size": task.batch_size,
        "num_workers": task.num_workers,
        "persistent_workers": task.num_workers > 0,
        "pin_memory": task.device != "cpu",
        "generator": torch.Generator().manual_seed(task.seed),
    }


def _tensors(task: Task) -> LoaderEpochs:
    return data_loader(task, whole_images(task, pil=False))


def _pil(task: Task) -> LoaderEpochs:
    return data_loader(task, whole_images(task, pil=True))


def _mixup(task: Task) -> LoaderEpochs:
    return data_loader(task, whole_images(task, pil=False), collate=MixUp(task.num_classes))


def _fdt_in_batch(task: Task) -> LoaderEpochs:
    return data_loader(task, whole_images(task, pil=False), collate=FdtInBatch(task.num_classes))


ENTRIES = (
    Entry("DataLoader, torchvision", "none", _tensors, note="u8 tensors from the start"),
    Entry("DataLoader, torchvision, PIL", "none", _pil, note="PIL images, as torchvision's data sets give them"),
    Entry("DataLoader, torchvision, MixUp", "mixup", _mixup, lambda num_classes: 2.0, note="v2.MixUp when collating"),
    Entry(
        "DataLoader, torchvision, FDT in the batch", "fdt in the batch", _fdt_in_batch, lambda c: (c + 1) / 2,
        note="vectorized torch when collating; K is at most the number of classes in a batch",
    ),
)  # fmt: skip
