"""FFCV: its beton file, and a pipeline that Numba compiles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..task import Batch, Entry, Task
from .images import imported, made_once, read_pil, stored_images

INSTALL = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config, then pip install ffcv opencv-python-headless"


class Beton:
    """An indexed data set of (u8[h w c], label), which FFCV writes."""

    def __init__(self, task: Task) -> None:
        self._images = stored_images(task)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image, label = self._images[i]
        return np.asarray(read_pil(image, 3)) if isinstance(image, str) else image, label


class FfcvEpochs:
    """A batch's memory is used again three batches later, as with FFCV itself."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def epoch(self, number: int) -> Iterator[Batch]:
        self._loader.next_epoch = number
        return ((images, labels.reshape(-1)) for images, labels in self._loader)

    def close(self) -> None:
        self._loader = None


def _make(task: Task) -> FfcvEpochs:
    loader = imported("ffcv.loader", INSTALL)
    if task.manifest.channels != 3:
        raise ValueError("FFCV's image field and its normalization are for RGB: leave FFCV out for gray images")
    np.random.seed(task.seed)  # noqa: NPY002 - what its augmentations draw from, outside of Numba
    beton = made_once(task.work / "images.beton", partial(_write, task))
    return FfcvEpochs(
        loader.Loader(
            str(beton), batch_size=task.batch_size, num_workers=max(1, task.num_workers), seed=task.seed,
            order=loader.OrderOption.RANDOM, os_cache=True, drop_last=False,
            pipelines={"image": _image_pipeline(task), "label": _label_pipeline(task)},
        )
    )  # fmt: skip


def _write(task: Task, path: Path) -> None:
    fields = imported("ffcv.fields", INSTALL)
    lossy = task.manifest.encoding in ("jpg", "keep")
    image = fields.RGBImageField("jpg", jpeg_quality=95) if lossy else fields.RGBImageField("raw")
    writer = imported("ffcv.writer", INSTALL).DatasetWriter(
        str(path), {"image": image, "label": fields.IntField()}, num_workers=1
    )
    writer.from_indexed_dataset(Beton(task))


def _image_pipeline(task: Task) -> list[Any]:
    decoders, transforms = imported("ffcv.fields.decoders", INSTALL), imported("ffcv.transforms", INSTALL)
    decode = (
        decoders.SimpleRGBImageDecoder()
        if task.size is None
        else decoders.CenterCropRGBImageDecoder(task.size, ratio=1)
    )
    return [
        decode,
        *([transforms.RandomTranslate(padding=task.pad)] if task.pad else []),
        *([transforms.RandomHorizontalFlip()] if task.flip else []),
        transforms.NormalizeImage(np.array(task.mean), np.array(task.std), np.float32),
        transforms.ToTensor(),
        *_moved(task),
        transforms.ToTorchImage(),
    ]


def _label_pipeline(task: Task) -> list[Any]:
    decoders, transforms = imported("ffcv.fields.decoders", INSTALL), imported("ffcv.transforms", INSTALL)
    return [decoders.IntDecoder(), transforms.ToTensor(), *_moved(task)]


def _moved(task: Task) -> list[Any]:
    if task.device == "cpu":
        return []
    return [imported("ffcv.transforms", INSTALL).ToDevice(torch.device(task.device), non_blocking=True)]


ENTRIES = (
    Entry(
        "FFCV", "none", _make,
        note="OrderOption.RANDOM, os_cache; its writer encodes JPEGs again, other files are stored decoded",
    ),
)  # fmt: skip
