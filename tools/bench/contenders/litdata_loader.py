"""litData: `optimize` writes its chunks, StreamingDataLoader reads them."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..task import Entry, Task
from .data_loader import loader_options
from .epochs import LoaderEpochs, to_device
from .images import ImageFile, arrays, image_files, is_raw, made_once
from .installed import imported
from .transforms import from_pil, whole_transform

INSTALL = "pip install litdata"
CHUNK = "64MB"  # as in its examples


class StoredTensor:
    """Raw images are stored as u8 tensors, c h w."""

    def __init__(self, task: Task) -> None:
        self._images, self._labels = arrays(task)

    def __len__(self) -> int:
        return len(self._labels)

    def __call__(self, i: int) -> dict[str, Any]:
        return {"image": torch.from_numpy(self._images[i]).permute(2, 0, 1).contiguous(), "label": int(self._labels[i])}


class StoredFile:
    """JPEG files are stored byte for byte, as litData does with a PIL image that has been opened and not decoded."""

    def __init__(self, files: list[ImageFile]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self, i: int) -> dict[str, Any]:
        path, label = self._files[i]
        return {"image": Image.open(path), "label": label}


class Transform:
    """A stored sample -> (f32[c h w], label); JPEGs come as tensors, other files as PIL images."""

    def __init__(self, task: Task) -> None:
        self._mode = "L" if task.manifest.channels == 1 else "RGB"
        self._tensor, self._pil = whole_transform(task), from_pil(task)

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        image = sample["image"]
        if isinstance(image, Image.Image):
            return self._pil(image.convert(self._mode)), sample["label"]
        if self._mode == "RGB" and len(image) == 1:
            image = image.expand(3, -1, -1)
        return self._tensor(image), sample["label"]


def _make(task: Task) -> LoaderEpochs:
    litdata = imported("litdata", INSTALL)
    folder = made_once(task.work / "litdata", partial(_write, task))
    dataset = litdata.StreamingDataset(
        str(folder), shuffle=True, drop_last=False, seed=task.seed, transform=Transform(task)
    )  # fmt: skip
    options = loader_options(task)
    del options["generator"]  # its data set shuffles
    loader = litdata.StreamingDataLoader(dataset, **options)
    return LoaderEpochs(loader, lambda batch: to_device((batch[0], batch[1]), task))


def _write(task: Task, folder: Path) -> None:
    store: Any = StoredTensor(task) if is_raw(task) else StoredFile(image_files(task))
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        imported("litdata", INSTALL).optimize(
            store, list(range(len(store))), str(folder), chunk_bytes=CHUNK, num_workers=1, verbose=False
        )
    finally:  # which `optimize` has set to spawn; its users optimize and train in two processes
        multiprocessing.set_start_method(before, force=True)


ENTRIES = (
    Entry("litData", "none", _make, note="optimize and StreamingDataLoader, chunks of 64 MB"),
)  # fmt: skip
