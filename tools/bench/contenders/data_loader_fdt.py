"""FDT over the whole set in a DataLoader: __getitem__ draws K images, shifts and flips each, and sums them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fdt_pipeline.sources.source import U8

from ..task import Entry, Task
from .data_loader import data_loader
from .epochs import LoaderEpochs
from .images import arrays, image_files, is_raw, read_tensor
from .installed import torchvision_v2
from .superposing import draw_mixture, index_classes, soft_targets


class Superposed(Dataset[Any]):
    """Lean: images have their frame of zeros already, so a shift and a flip are a view, and what is summed is
    standardized once: torchvision's transforms of each image would be its largest cost."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._framed = ArrayFrames(task) if is_raw(task) else FileFrames(task)
        self._index = index_classes(torch.as_tensor(self._framed.labels))
        self._mean, self._std = (np.array(values, np.float32) for values in (task.mean, task.std))

    def __len__(self) -> int:
        return len(self._framed.labels)

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
            crop = self._framed[image][dy : dy + h, dx : dx + w]
            np.multiply(crop[:, ::-1] if flip else crop, np.float32(weight), out=weighted)
            total += weighted
        total -= self._mean
        total /= self._std
        return torch.from_numpy(total).permute(2, 0, 1), soft_targets(mixture, task.num_classes)[0]


class ArrayFrames:
    """All images in memory, framed once."""

    def __init__(self, task: Task) -> None:
        images, self.labels = arrays(task)
        self._images = np.pad(images, ((0, 0), (task.pad,) * 2, (task.pad,) * 2, (0, 0)))

    def __getitem__(self, i: int) -> U8:
        """u8[h w c]"""
        return self._images[i]


class FileFrames:
    """Files, each decoded whenever it is drawn."""

    def __init__(self, task: Task) -> None:
        self._files, self._task = image_files(task), task
        self.labels = np.array([file.label for file in self._files])
        v2 = torchvision_v2()
        self._resize = v2.Resize(task.size, antialias=True) if task.size is not None else v2.Identity()

    def __getitem__(self, i: int) -> U8:
        image = self._resize(read_tensor(self._files[i].path, self._task.manifest.channels))
        pad = self._task.pad
        return torch.nn.functional.pad(image, (pad,) * 4).permute(1, 2, 0).numpy()


def _fdt(task: Task) -> LoaderEpochs:
    return data_loader(task, Superposed(task), shuffle=False)


ENTRIES = (
    Entry(
        "DataLoader, FDT over the set", "fdt", _fdt, lambda num_classes: (num_classes + 1) / 2,
        note="sums NumPy views in __getitem__; files are decoded for every sum",
    ),
)  # fmt: skip
